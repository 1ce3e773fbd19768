"""What only a policy and its sampler open: the rows of a step as they were asked and answered."""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Payload:
    """Rows of a step. Indexed by a list of rows, like the tensors beside it."""

    prompt: tuple[tuple[int, ...], ...]
    """Token ids of each prompt; () where it has none."""
    completion: tuple[tuple[int, ...], ...]
    """What was chosen: token ids, or numbers of classes."""
    inputs: tuple[Any, ...] | None = None
    """What each prompt holds beside its ids (images); None where no prompt does."""
    replay: tuple[Any, ...] | None = None
    """What must be seen again to score a row as it was sampled (expert routes); None where nothing must."""
    draw: tuple[int, ...] = ()
    """Counters that name the random draws behind a likelihood that is estimated; shared by all rows of an update."""
    counted: Any = None
    """What the scorer counted over all rows of an update, before any of them goes forward (see `CountsFirst`)."""

    def __getitem__(self, rows: list[int]) -> "Payload":
        some = lambda values: None if values is None else tuple(values[i] for i in rows)  # noqa: E731
        return Payload(
            tuple(self.prompt[i] for i in rows),
            tuple(self.completion[i] for i in rows),
            some(self.inputs),
            some(self.replay),
            self.draw,
            self.counted,
        )

    def with_draw(self, *counters: int) -> "Payload":
        return replace(self, draw=counters)

    def with_replay(self, replay: tuple[Any, ...]) -> "Payload":
        return replace(self, replay=replay)
