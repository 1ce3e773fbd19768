"""A verifier of the user's own, from a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gspo.rewards.calling import load_function
from gspo.verifiers.base import Attempt, Verdict


@dataclass(frozen=True, kw_only=True)
class Own:
    """`function` takes a list of attempts and returns as many `gspo.verifiers.Verdict`s."""

    name: Literal["own"] = "own"
    function: str
    """path/to/file.py:function."""

    def __call__(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        verdicts = list(load_function(self.function)(list(attempts)))
        wrong = [verdict for verdict in verdicts if not isinstance(verdict, Verdict)]
        if wrong or len(verdicts) != len(attempts):
            what = f"a {type(wrong[0]).__name__}" if wrong else f"{len(verdicts)} verdicts for {len(attempts)} attempts"
            raise ValueError(f"verifier {self.function} returned {what}; it must return one Verdict for each")
        return verdicts
