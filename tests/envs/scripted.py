"""Environments and samplers that say what they are told."""

from collections.abc import Callable, Sequence
from typing import Any

from gspo.collectors.episodes import EpisodeSource
from gspo.envs import Action, Observation
from gspo.envs.config import EnvironmentConfig
from gspo.models import character_tokenizer
from gspo.renderers import Renderer
from gspo.rewards import Rewards
from gspo.samplers.fake import FakeSampler
from gspo.sampling import Sampling

ALPHABET = "0123456789+-*=> abcdefghijklmnopqrstuvwxyz"
END = 1
TOKENIZER = character_tokenizer(ALPHABET)


def ids_of(text: str) -> tuple[int, ...]:
    """Ids of characters; `|` stands for the end token."""
    return tuple(END if c == "|" else ALPHABET.index(c) + 2 for c in text)


def text_of(ids: Sequence[int]) -> str:
    return "".join("|" if i == END else ALPHABET[i - 2] for i in ids)


class Scripted:
    """Answers turn by turn; an answer may be an observation, an exception to raise, or a function to call."""

    def __init__(self, answers: Sequence[Any], start: Any = Observation(), score: Any = None):
        self.answers, self.first, self.total = list(answers), start, score
        self.heard: list[Action] = []
        self.is_closed = False

    def start(self) -> Any:
        return self._given(self.first)

    def step(self, action: Action) -> Any:
        self.heard.append(action)
        return self._given(self.answers[len(self.heard) - 1])

    def close(self) -> None:
        self.is_closed = True

    def score(self) -> Any:
        return self._given(self.total)

    def _given(self, answer: Any) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer() if callable(answer) else answer


def source_of(
    factory: Callable[..., Any],
    say: Callable[[int, int], str],
    *,
    rows: Sequence[dict] = ({"prompt": "ab"},),
    group_size: int = 1,
    rewards: Sequence[Any] = (),
    limit: int = 20,
    reward_limit: float = 0.0,
    context: int = 0,
    **settings: Any,
) -> EpisodeSource:
    """`say(index, turn)` is what the policy says; a last `|` ends its turn."""
    settings = {"failure_limit": 1.0, **settings}
    return EpisodeSource(
        rows=list(rows),
        factory=factory,
        renderer=Renderer(TOKENIZER),
        sampler=FakeSampler(lambda request, index: ids_of(say(index, request.turn)), stop_id=END),
        rewards=Rewards(rewards, given={"environment": 1.0}),
        sampling=Sampling(max_completion_tokens=limit),
        group_size=group_size,
        seed=0,
        settings=EnvironmentConfig(function="file.py:env", **settings),
        failure_limit=reward_limit,
        context=context,
    )
