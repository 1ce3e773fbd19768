"""The settings of a run's environment."""

from dataclasses import dataclass, field
from typing import Any, Literal

from gspo.limits import at_least


@dataclass(frozen=True, kw_only=True)
class EnvironmentConfig:
    """What a rollout talks to between its turns. Without `name` or `function` a rollout is one completion."""

    name: str = ""
    """A built-in environment: calculator, op_amp, rc_ladder, black_box."""
    function: str = ""
    """Your own, as path/to/file.py:NAME: a factory, or an environment of TRL, Gymnasium, TextArena, verifiers, ..."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment."""
    max_turns: int = 8
    """Completions of one rollout; a rollout that has more to say ends as "max_turns"."""
    max_tokens: int = 0
    """Tokens of one rollout behind its prompt, the environment's included ("max_tokens"); 0 sets no limit."""
    max_observation_tokens: int = 512
    """Tokens of one message of the environment; longer ones are cut, marked and counted."""
    step_timeout: float = 30.0
    """Seconds for one call of the environment ("env_timeout")."""
    rollout_timeout: float = 600.0
    """Seconds for all calls of one rollout together ("rollout_timeout")."""
    on_failure: Literal["exclude", "score"] = "exclude"
    """What becomes of a rollout whose environment failed: not trained, or scored with `failure_reward`."""
    failure_reward: float = 0.0
    """Its reward under on_failure = "score"."""
    failure_limit: float = 0.1
    """Share of a step's rollouts whose environment may fail before the run stops."""
    weight: float = 1.0
    """Factor of the environment's own reward beside those of `rewards`; 0 leaves it out."""
    history: Literal["sampled", "template"] = "sampled"
    """How a conversation goes on: behind the sampled ids as they are; or rendered anew by the chat template each turn,
    which may drop earlier thinking, and then trains each turn as a sequence of its own."""

    @property
    def is_set(self) -> bool:
        return bool(self.name or self.function)

    def __post_init__(self) -> None:
        if self.name and self.function:
            raise ValueError(f"environment has both name = {self.name!r} and function: remove one of them")
        at_least(self, "environment.", 1, "max_turns", "max_observation_tokens")
        at_least(self, "environment.", 0, "max_tokens", "failure_limit")
        for name in ("step_timeout", "rollout_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"environment.{name} is {getattr(self, name)}; it must be more than 0 seconds")
