"""The plain collector: the next prompts, one wave."""

from dataclasses import dataclass

from gspo.collectors.base import Collected
from gspo.collectors.source import Source


@dataclass(frozen=True, kw_only=True)
class Direct:
    source: Source
    prompts_per_step: int

    def collect(self, cursor: int, step: int) -> Collected:
        rows = self.source.next_rows(cursor, self.prompts_per_step)
        wave = self.source.wave(rows, step)
        return Collected(
            groups=wave.groups,
            cursor=rows[-1][0] + 1,
            seconds=wave.seconds,
            prompts_drawn=self.prompts_per_step,
            errors=wave.errors,
            facts=wave.facts,
        )
