"""The plain collector: the next prompts, one wave."""

from dataclasses import dataclass

from gspo.collectors.base import Collected
from gspo.collectors.source import Source


@dataclass(frozen=True, kw_only=True)
class Direct:
    source: Source
    prompts_per_step: int

    def collect(self, cursor: int, step: int) -> Collected:
        wave = self.source.wave(self.source.next_rows(cursor, self.prompts_per_step), step)
        return Collected(
            groups=wave.groups,
            cursor=cursor + self.prompts_per_step,
            seconds=wave.seconds,
            prompts_drawn=self.prompts_per_step,
            errors=wave.errors,
            facts=wave.facts,
        )
