"""The values that travel along the loop, all frozen, and the shape legend.

    P prompts in a step      G completions per prompt (group size)   B rows (rollouts, or samples) in a batch
    U units (tokens for a language model)    T tokens    V vocabulary    D model width    K reward functions

A *unit* is the smallest thing the policy chose; for a causal language model it is a completion token, the
stop token included. Prompt tokens are not units.

`Completion` -> `Turn` -> `Rollout` -> `Group` -> `Sample` -> `Step`: what the sampler said, what it had read before,
what was scored, what is compared, what is trained on, and the tensors of one optimizer step.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FinishReason = Literal["stop", "length"]
RewardStatus = Literal["ok", "none", "error", "timeout", "nan"]
Ending = Literal[
    "done", "env_truncated", "max_turns", "max_tokens", "cut", "env_error", "env_timeout", "rollout_timeout"
]
"""Why a rollout ended: the policy or the environment ended it; the environment by a limit of its own; the run's limit
on turns, on tokens; a completion cut by its token limit; the environment raised or gave a wrong type; one call of it,
or all calls of the rollout, took too long."""
TRUNCATED: tuple[Ending, ...] = ("env_truncated", "max_turns", "max_tokens", "cut")
"""Endings by a limit."""
FAILED_ENDINGS: tuple[Ending, ...] = ("env_error", "env_timeout", "rollout_timeout")
"""Endings that are nobody's merit: not trained, or scored, as the run says."""
Need = Literal["old", "reference", "rewards", "entropy", "entropy_gradient", "sampler", "old_entropy"]
"""What a term reads beyond the current log-probs: old or reference log-probs, rewards, the policy's entropy (value,
or with gradient), the sampler's log-probs, the old policy's entropy."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What a sampler returns for one request index.

    `ids` holds every sampled token *including the stop token* (finish_reason "stop"), so that ending is an
    action like any other. Example, character tokens: prompt "3+4=", ids of "7" and "<eos>", two log-probs,
    finish_reason "stop".
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability of each id under the distribution it was really drawn from (temperature, top-p, top-k)."""
    policy_version: int
    """Number of optimizer steps behind the weights that sampled."""
    finish_reason: FinishReason
    """"stop": ended by an end token; "length": cut by `max_completion_tokens`."""
    replay: Any = None
    """What the policy must see again to score these ids as they were sampled (expert routes); None: nothing."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One exchange: what the policy had read, and what it said.

    Where a conversation goes on, `prompt_ids` of the next turn begins with this one's prompt and completion, sampled
    ids untouched; what stands behind them was said by the environment.
    """

    prompt_ids: tuple[int, ...]
    completion: Completion
    reward: float = float("nan")
    """The environment's reward of this turn; NaN where it gave none."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One scored attempt at a prompt."""

    group_id: int
    """Position of the group in the rollout batch."""
    index: int
    """Position of this rollout in its group, 0..G-1."""
    turns: tuple[Turn, ...]
    """At least one, unless the environment failed before the first."""
    text: str
    """The decoded last completion, special tokens removed: what reward functions read."""
    ending: Ending = "done"
    rewards: tuple[float, ...] = ()
    """[K] one score per reward function; NaN where `statuses` is not "ok"."""
    statuses: tuple[RewardStatus, ...] = ()
    """[K] what became of each reward call."""
    reward: float = float("nan")
    """Weighted sum of `rewards`; NaN when the rollout could not be scored."""
    unit_rewards: "UnitRewards | None" = None
    """Rewards of every unit, where units compete with each other (a set of classes) and not with other rollouts."""

    @property
    def completion(self) -> Completion:
        """All that the policy said, one turn after another; the last turn says how it ended."""
        said = [turn.completion for turn in self.turns]
        if len(said) == 1:
            return said[0]
        return Completion(
            ids=tuple(i for completion in said for i in completion.ids),
            logprobs=tuple(x for completion in said for x in completion.logprobs),
            policy_version=min((completion.policy_version for completion in said), default=0),
            finish_reason=said[-1].finish_reason if said else "length",
        )

    @property
    def is_truncated(self) -> bool:
        """Whether a limit ended it."""
        return self.ending in TRUNCATED or self.completion.finish_reason == "length"


@dataclass(frozen=True, kw_only=True)
class UnitRewards:
    """The units of a rollout are whole sets of alternatives, one set after another: each set is a group."""

    values: Float[np.ndarray, "U K"]
    """One column per reward."""
    total: Float[np.ndarray, "U"]
    """Weighted sum of the columns."""
    set_size: int
    """Units of a set; divides U."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """All attempts at one prompt; the thing rewards are compared in. The prompt is stored once."""

    prompt_id: int
    """Index of the row in the training data; with (run seed, step, rollout index) it seeds every sample."""
    prompt_ids: tuple[int, ...]
    prompt_text: str
    rollouts: tuple[Rollout, ...]
    columns: dict[str, Any] = field(default_factory=dict)
    """The data row's other columns, as the reward functions received them."""
    inputs: Any = None
    """What the prompt holds beside its ids (images); only the policy and its sampler open it."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One rollout, or a part of it, flattened for training: token ids and which of them the policy chose.

    Example: prompt ids (5, 11, 6, 13), completion ids (9, 1) where 1 is `<eos>`; both completion ids are units. In a
    conversation completion ids go on with what the environment said, which `mask` leaves out: (9, 1, 4, 4, 8, 1) with
    mask (True, True, False, False, True, True).
    """

    group_id: int
    rollout_id: int
    """Number of the rollout in the rollout batch; rows of one rollout share it."""
    index: int
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    """One per completion id; 0 where the environment spoke."""
    advantage: float | tuple[float, ...]
    """One for the row, or one per completion id (0 where the environment spoke)."""
    reward: float
    is_trained: bool
    """False masks the whole row (unscored, or cut off under the overlong filter); the row still counts as a row."""
    part: int = 0
    """Position among the rows of its rollout: a conversation whose history was rewritten becomes several."""
    mask: tuple[bool, ...] | None = None
    """Which completion ids the policy chose; None stands for all."""
    inputs: Any = None
    """See `Group`."""
    replay: Any = None
    """See `Completion`."""

    @property
    def num_units(self) -> int:
        return len(self.completion_ids) if self.mask is None else sum(self.mask)

    @property
    def mean_advantage(self) -> float:
        """The row's advantage, or the mean of its units' advantages."""
        if isinstance(self.advantage, tuple):
            return sum(self.advantage) / max(self.num_units, 1)
        return self.advantage


@dataclass(frozen=True, kw_only=True)
class Step:
    """Everything known about one optimizer step's rows before the forward pass. Values outside `mask` are 0."""

    mask: Bool[Tensor, "B U"]
    """True where a unit is trained."""
    advantage: Float[Tensor, "B"] | Float[Tensor, "B U"]
    old_logprobs: Float[Tensor, "B U"]
    """log pi_old: the denominator of the importance ratio."""
    length: Int[Tensor, "B"]
    """Trained units of the row (what the papers write |y_i|), or the length a caller declares."""
    group: Int[Tensor, "B"]
    rollout: Int[Tensor, "B"]
    rewards: Float[Tensor, "B"] | None = None
    reference_logprobs: Float[Tensor, "B U"] | None = None
    sampler_logprobs: Float[Tensor, "B U"] | None = None
    old_entropy: Float[Tensor, "B U"] | None = None
    """Entropy of the next-token distribution of the old policy, in nats; present when a correction asks for it."""
    old_from_forward: bool = False
    """`old_logprobs` are those of the coming forward pass, which runs on the very weights that are the old policy."""
    payload: Any = None
    """What only one policy opens (token ids, images, mask seeds). Indexed by a list of rows, like the tensors."""

    def rows(self, rows: list[int]) -> "Step":
        """The same step restricted to some rows (a micro-batch)."""
        index = torch.tensor(rows, dtype=torch.long, device=self.mask.device)
        pick = lambda x: x[index] if isinstance(x, Tensor) else x if x is None or isinstance(x, bool) else x[rows]  # noqa: E731
        return Step(**{name: pick(value) for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the policy under training says now about the rows of a step; gradient flows through it."""

    logprobs: Float[Tensor, "B U"]
    entropy: Float[Tensor, "B U"] | None = None
    """Entropy of the next-token distribution at each unit, in nats; present when a term asks for it."""
    replay: tuple[Any, ...] | None = None
    """[B] what scoring these rows chose besides the log-probs (expert routes), where the policy records it."""
    penalty: Tensor | None = None
    """A loss of the policy's own, added in its backward pass: these rows' part of a sum over the update."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why each unit counts as it does: read by metrics, the ledger and the report. Detached."""

    log_ratio: Float[Tensor, "B U"]
    """The log importance ratio the objective used (a sequence ratio is repeated over its units)."""
    bound: Int[Tensor, "B U"]
    """-1 where the lower bound took the gradient away or capped its weight, +1 the upper, 0 where neither acts."""
    level: Literal["sequence", "token"]
    """Whether the objective's ratio belongs to the sequence or to the token: the denominator of its clip metrics."""
    band: float = float("inf")
    """How far `log_ratio` may lie from 0 before the objective treats a row differently: the narrower clip bound, or the
    width of a gate. Noise of the old log-probs must stay well inside it."""
