"""The settings of a run, as classes: fields, defaults, and the ranges they must lie in. `gspo.settings` reads them.

The fields of objectives, advantages and terms are those of their own classes.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from gspo.advantages import Advantage, GroupStd
from gspo.collectors.draft_then_refine import DraftConfig
from gspo.collectors.turn_forks import Continuation
from gspo.corrections import AnyCorrection
from gspo.data import DataConfig
from gspo.dist.config import RanksConfig
from gspo.envs.config import EnvironmentConfig
from gspo.limits import at_least
from gspo.models import TINY, Dtype, LoRA, TinyConfig
from gspo.objectives import GSPO, Objective, Term
from gspo.phases import Phase, refuse_unsound
from gspo.placement.config import PlacementConfig
from gspo.policies.config import CausalLMConfig, PolicyConfig
from gspo.policies.layouts import LayoutName
from gspo.policies.master import AdamW
from gspo.rewards import RewardConfig
from gspo.samplers.config import InProcessConfig, ProcessConfig, SamplerConfig, ServerConfig
from gspo.sampling import Sampling

OldLogprobs = Literal["auto", "sampler", "policy"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Course of the learning rate over optimizer updates."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    """After warm-up: constant, or falling to `final` x lr at the last step, linearly or along a half cosine."""
    warmup_steps: int = 0
    """Steps (rollout batches) over which the rate rises linearly from 0."""
    final: float = 0.0
    """Share of the peak rate left at the last step."""

    def __post_init__(self) -> None:
        at_least(self, "schedule.", 0, "warmup_steps", "final")


@dataclass(frozen=True, kw_only=True)
class CollectorConfig:
    """Which rollouts become a training batch."""

    refill: bool = False
    """DAPO's dynamic sampling: groups without reward spread are replaced by new prompts."""
    max_rounds: int = 4
    """Rounds of refilling before the step goes on with the groups it has."""
    drop_truncated: bool = False
    """DAPO's overlong filter: completions cut by the token limit are not trained (they still count as rows)."""
    drafts: DraftConfig = field(default_factory=DraftConfig)
    """iGRPO: the best of some drafts becomes part of the prompt, and only refinements of it are trained."""
    forks: bool = False
    """TL-GRPO: at every turn of an environment a group of alternatives behind one history."""
    continuation: Continuation = "first"
    """Which alternative a forked episode goes on with: first, best or random."""

    def __post_init__(self) -> None:
        at_least(self, "collector.", 1, "max_rounds")
        if self.forks and self.refill:
            raise ValueError("collector.forks makes a group of every turn: it cannot go with collector.refill")
        if self.forks and self.drafts.number:
            raise ValueError("collector.forks and collector.drafts exclude each other; set one of them")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out evaluation, with sampling settings of its own."""

    every: int = 20
    """Steps between evaluations; 0 evaluates before and after only."""
    prompts: int = 200
    """Held-out problems used (fewer when there are fewer)."""
    samples: int = 1
    """Completions per problem at `temperature`."""
    temperature: float = 0.0
    """Temperature of `eval/accuracy`; 0 is greedy."""
    greedy: bool = False
    """Also evaluate greedily, as `eval/greedy_*`, when `temperature` is not 0."""
    max_completion_tokens: int = 0
    """Token limit; 0 takes the training limit."""

    def __post_init__(self) -> None:
        at_least(self, "evaluation.", 0, "every", "prompts", "temperature", "max_completion_tokens")
        at_least(self, "evaluation.", 1, "samples")


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """What is written, and what is kept."""

    every: int = 20
    """Steps between checkpoints; one is always written at the end and when the run is interrupted."""
    keep: int = 2
    """Newest checkpoints kept."""
    keep_rollouts: int = 50
    """Newest rollout and ledger files kept; 0 keeps all."""
    save_rollouts_every: int = 1
    """Steps between saved rollout and ledger files."""

    def __post_init__(self) -> None:
        at_least(self, "checkpoints.", 1, "every", "keep", "save_rollouts_every")
        at_least(self, "checkpoints.", 0, "keep_rollouts")


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """Supervised steps before reinforcement learning, on the task's own answers."""

    steps: int = 0
    """Most supervised steps; 0 starts from the model as it is."""
    batch: int = 128
    """Rows per supervised step."""
    lr: float = 2e-3
    """Learning rate of AdamW."""
    warmup_steps: int = 20
    """Steps over which the rate rises linearly from 0."""
    stop_at: float = 0.4
    """Greedy held-out accuracy at which the cold start ends."""
    check_every: int = 10
    """Steps between checks of that accuracy."""

    def __post_init__(self) -> None:
        at_least(self, "cold_start.", 0, "steps", "warmup_steps")
        at_least(self, "cold_start.", 1, "batch", "check_every")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that defines a run."""

    name: str = "addition"
    """Name of the run; its folder is runs/NAME unless `folder` says otherwise."""
    folder: str = ""
    """Run folder; empty means runs/NAME, with a number appended when that exists."""
    seed: int = 0
    """Seed of the run: data order, sampling, and a tiny model's weights are functions of it."""
    model: str = TINY
    """"tiny", "smollm2-135m-instruct", a local folder, or a Hugging Face id such as "Qwen/Qwen3-0.6B"."""
    policy: PolicyConfig = field(default_factory=CausalLMConfig)
    """Kind of policy by name, or a table with its fields: causal_lm, diffusion, representation, image_tokens."""
    dtype: Dtype = "auto"
    """What the network computes in; master weights are float32. auto: float32 if small or on MPS, else bfloat16."""
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:1, mps."""
    threads: int = 0
    """CPU threads; 0: one under 20 M parameters, else the cores that are free. Part of what makes a run bit-equal."""
    steps: int = 100
    """Rollout batches of the whole run."""
    prompts_per_step: int = 32
    """Prompts sampled at once."""
    group_size: int = 8
    """Completions per prompt."""
    updates_per_step: int = 4
    """Mini-batches of whole groups that a rollout batch is cut into, one optimizer update each."""
    epochs: int = 1
    """Passes over each rollout batch."""
    micro_batch_tokens: int = 16384
    """Tokens that go through the network at once while training; a prompt stays together with its completions."""
    layout: LayoutName = "auto"
    """Forward layout while training (same values): padded, packed, shared_prefix, or auto, the cheapest by lengths."""
    checkpoint_activations: bool = False
    """Keep only each layer's input and compute the layer again in the backward pass: less memory, a third more time."""
    sampler_rows: int = 512
    """Completions decoded at once."""
    max_policy_lag: int = 0
    """Steps by which the weights that sample may lag behind those that train; above 0 the two go on side by side."""
    old_logprobs: OldLogprobs = "auto"
    """Denominator of the ratio: the sampler's own log-probs, a second pass of the policy, or auto by measured noise."""
    reward_failure_limit: float = 0.1
    """Share of reward calls that may fail in one step before the run stops."""
    compile: bool = False
    """torch.compile of the forward pass that trains (same values up to rounding); costs a minute or two at first."""
    overlap_rewards: bool = True
    """Score groups as they end while others are being sampled, unless all rewards answer at once (same values)."""
    system_prompt: str = ""
    """System message put before chat prompts."""
    chat: Literal["auto", "always", "never"] = "auto"
    """Whether text prompts go through the chat template: auto sends only message lists."""
    stop: tuple[str, ...] = ()
    """Further end tokens, by their text, beside the tokenizer's and the generation config's."""
    strip_thinking: bool = False
    """Rewards see only the text behind </think>."""
    objective: Objective = field(default_factory=GSPO)
    """Objective by name, or a table with its fields."""
    terms: tuple[Term, ...] = ()
    """Terms added to the objective: reference_kl, old_kl, entropy_bonus, adaptive_entropy."""
    corrections: tuple[AnyCorrection, ...] = ()
    """Detached multipliers on the objective: token_tis, sequence_tis, token_mask, sequence_mask, icepop, ..."""
    advantage: Advantage = field(default_factory=GroupStd)
    """Advantage estimator by name, or a table with its fields."""
    sampling: Sampling = field(default_factory=Sampling)
    """How completions are drawn while training."""
    sampler: SamplerConfig = field(default_factory=InProcessConfig)
    """Where completions come from, by name or as a table with its fields: in_process, process, vllm, sglang."""
    data: DataConfig = field(default_factory=DataConfig)
    """Prompts and their columns."""
    rewards: tuple[RewardConfig, ...] = ()
    """Reward functions; empty takes the task's own, or with an environment the environment's alone."""
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    """What rollouts talk to between their turns."""
    optimizer: AdamW = field(default_factory=AdamW)
    """AdamW."""
    schedule: Schedule = field(default_factory=Schedule)
    """Learning-rate schedule."""
    collector: CollectorConfig = field(default_factory=CollectorConfig)
    """Dynamic sampling and filters."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """Held-out evaluation."""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    """Saving and retention."""
    cold_start: ColdStart = field(default_factory=ColdStart)
    """Supervised start."""
    lora: LoRA = field(default_factory=LoRA)
    """Low-rank adapters."""
    ranks: RanksConfig = field(default_factory=RanksConfig)
    """How the processes that torchrun starts share the run."""
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    """Ray: where the policy, samplers and reward workers are; `--on` is short for `--placement.on`."""
    tiny: TinyConfig = field(default_factory=TinyConfig)
    """Shape of the embedded model."""
    phase: tuple[Phase, ...] = ()
    """A schedule of phases, gone through again and again for `steps` steps; empty is one phase of sampling."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Trackers written beside metrics.jsonl; one that is not installed is an error, except tensorboard."""

    def __post_init__(self) -> None:
        at_least(self, "", 1, "steps", "prompts_per_step", "group_size", "updates_per_step", "epochs")
        at_least(self, "", 1, "micro_batch_tokens", "sampler_rows")
        at_least(self, "", 0, "seed", "threads", "reward_failure_limit", "max_policy_lag")
        self._check_collector()
        self._check_phases()
        self._check_policy()
        self._check_sampler()
        self._check_placement()
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise ValueError(f"device is {self.device!r}; it must be auto, cpu, cuda, cuda:1 or mps")
        if self.prompts_per_step % self.updates_per_step:
            raise ValueError(
                f"prompts_per_step = {self.prompts_per_step} does not divide into updates_per_step = "
                f"{self.updates_per_step} mini-batches of whole groups; choose a multiple"
            )
        if self.compile and self.checkpoint_activations:
            raise ValueError("compile and checkpoint_activations exclude each other; set one of them to false")
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature is 0: every completion of a group would be the same; use e.g. 1.0")

    @property
    def trained_per_prompt(self) -> int:
        """Completions per prompt that are compared and trained: all but drafts."""
        return self.group_size - self.collector.drafts.number

    def _check_collector(self) -> None:
        drafts = self.collector.drafts.number
        if drafts and self.environment.is_set:
            raise ValueError("collector.drafts refines single completions: it cannot go with an environment")
        if drafts >= self.group_size:
            raise ValueError(
                f"collector.drafts.number = {drafts} leaves no refinement of group_size = {self.group_size} completions"
            )

    def _check_policy(self) -> None:
        kind = self.policy.name
        if isinstance(self.policy, CausalLMConfig):
            if self.policy.routing == "R2" and self.old_logprobs == "sampler":
                raise ValueError(
                    'policy.routing = "R2" repeats the experts of the pass that makes old log-probs, and '
                    'old_logprobs = "sampler" makes none; use "policy", or routing = "R3"'
                )
            return
        what = {
            "environment": self.environment.is_set,
            "phase": bool(self.phase),
            "collector.drafts": bool(self.collector.drafts.number),
        }
        wrong = [name for name, is_there in what.items() if is_there]
        if wrong:
            raise ValueError(f'{wrong[0]} is for language models that write on: it cannot go with policy = "{kind}"')

    def _check_placement(self) -> None:
        if self.placement.places_servers:
            self._check_placed_servers()
        if not self.placement.places_samplers:
            return
        number = f"placement.samplers = {self.placement.samplers}"
        if not isinstance(self.sampler, InProcessConfig):
            raise ValueError(
                f'{number} samples in Ray\'s processes, and sampler = "{self.sampler.name}" elsewhere: leave sampler '
                "out, or set placement.samplers = 0"
            )
        if not isinstance(self.policy, CausalLMConfig):
            raise ValueError(
                f'{number} is for language models: policy = "{self.policy.name}" samples in its own process; set '
                "placement.samplers = 0"
            )

    def _check_placed_servers(self) -> None:
        number = f"placement.servers = {self.placement.servers}"
        if not (isinstance(self.sampler, ServerConfig) and self.sampler.name == "vllm"):
            raise ValueError(
                f'{number} starts vLLM servers, and sampler = "{self.sampler.name}" asks none: set sampler = "vllm", '
                "or leave placement.servers out"
            )
        if self.sampler.url:
            raise ValueError(
                f"{number} starts servers of the run's own, and sampler.url names others: leave one of them out"
            )

    def _check_sampler(self) -> None:
        is_beside = self.placement.places_samplers
        if self.max_policy_lag and isinstance(self.sampler, InProcessConfig) and not is_beside:
            raise ValueError(
                f'max_policy_lag = {self.max_policy_lag} samples while the weights move, and sampler = "in_process" '
                'samples from these very weights; set sampler = "process" or "vllm", or max_policy_lag = 0'
            )
        if isinstance(self.sampler, InProcessConfig):
            return
        if isinstance(self.sampler, ServerConfig) and self.sampler.lora == "adapter" and not self.lora.rank:
            raise ValueError(
                'sampler.lora = "adapter" sends the adapters of a LoRA policy, and lora.rank is 0: set lora.rank, or '
                'sampler.lora = "merged"'
            )
        if not isinstance(self.policy, CausalLMConfig):
            raise ValueError(
                f'sampler = "{self.sampler.name}" serves language models: it cannot go with policy = '
                f'"{self.policy.name}", which samples in its own process'
            )
        if isinstance(self.sampler, ProcessConfig):
            return
        if self.policy.routing == "R3" and self.sampler.name == "sglang":
            raise ValueError(
                'policy.routing = "R3" repeats the experts of the sampler, and sampler = "sglang" does not record them '
                'yet; use sampler = "vllm", or routing = "R2" or "free"'
            )
        if self.policy.sampler_dtype != "auto":
            raise ValueError(
                "policy.sampler_dtype is for the sampler in this process: a server has the dtype it started with"
            )
        if self.sampler.name == "sglang" and self.sampling.truncates:
            raise ValueError(
                "SGLang does not give log-probs under sampling.top_p or sampling.top_k: leave them out, or use "
                'sampler = "vllm"'
            )

    def _check_phases(self) -> None:
        refuse_unsound(self.phase)
        if not any(phase.pairs_from for phase in self.phase):
            return
        if self.environment.is_set:
            raise ValueError("phases with pairs_from compare single completions: they cannot go with an environment")
        if self.lora.rank and any(p.pairs_from and p.reference == "phase" for p in self.phase):
            raise ValueError(
                'a LoRA policy is compared with the model under its adapters: set reference = "start" in phases with '
                "pairs_from"
            )
        if self.checkpoints.save_rollouts_every != 1:
            raise ValueError("phases with pairs_from read all saved rollouts: set checkpoints.save_rollouts_every = 1")
        span = sum(phase.steps for phase in self.phase)
        if self.checkpoints.keep_rollouts and self.checkpoints.keep_rollouts < span:
            raise ValueError(
                f"phases with pairs_from read the rollouts of a round of {span} steps: set checkpoints.keep_rollouts "
                f"to at least {span}, or to 0 to keep all"
            )
