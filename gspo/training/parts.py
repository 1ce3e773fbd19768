"""Builds the parts of a run from its settings: the one place where names become objects."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from gspo.advantages.base import AdvantageEstimator
from gspo.collectors import (
    Collector,
    Direct,
    DraftThenRefine,
    EpisodeSource,
    GroupSource,
    Refill,
    Source,
    TurnForks,
)
from gspo.collectors.offline import SCORE, OfflineSource, completions_of, is_offline
from gspo.collectors.pairs import PairCollector
from gspo.config import RunConfig
from gspo.corrections import Reweighting
from gspo.data import Dataset, load_dataset
from gspo.dist.building import Leading, lead_of, loading, policy_of, reference_of, saver_of
from gspo.dist.ranks import ALONE, Ranks
from gspo.envs.base import EnvFactory
from gspo.envs.loading import load_environment
from gspo.functional import as_terms
from gspo.models import Loaded, pick_device, save_model
from gspo.objectives.base import UnitObjective
from gspo.objectives.corrected import Corrected
from gspo.phases import Phase
from gspo.placement.config import PlacementConfig
from gspo.policies.causal_lm import TokenScorer
from gspo.policies.diffusion import ElboScorer
from gspo.policies.trained import TrainedPolicy
from gspo.renderers import Renderer
from gspo.requirements import unmet
from gspo.rewards import Rewards
from gspo.rewards.scoring import ENVIRONMENT
from gspo.samplers.base import Sampler
from gspo.samplers.config import ServerConfig
from gspo.sampling import Sampling
from gspo.settings import phase_config
from gspo.training.kinds import build_policy, competition_of
from gspo.training.state import Saver


@dataclass(frozen=True, kw_only=True)
class Given:
    """Objects passed from Python in place of names in the settings."""

    model: Any = None
    """A transformers model; with `tokenizer`."""
    tokenizer: Any = None
    data: Dataset | None = None
    rewards: Sequence[Any] = ()
    """Callables."""
    environment: EnvFactory | None = None
    """In place of the settings' environment."""
    objective: UnitObjective | None = None
    """In place of the settings' objective."""
    terms: tuple[UnitObjective, ...] = ()
    """Added to the settings' terms."""
    advantage: AdvantageEstimator | None = None
    """In place of the settings' estimator."""
    ranks: Ranks = ALONE
    """The processes that share the run; `gspo train` finds those that torchrun started."""
    servers: tuple[str, ...] = ()
    """Addresses of the servers that Ray keeps up for the sampler."""
    is_asked_to_stop: Callable[[], bool] = lambda: False
    """Beside signals: whether to save and end after this step."""

    def names(self) -> list[str]:
        """Which parts were given as objects: what settings alone cannot bring back."""
        names = ("model", "data", "rewards", "environment", "objective", "terms", "advantage")
        return [name for name in names if self._has(name)]

    def _has(self, name: str) -> bool:
        value = vars(self)[name]
        return value is not None and value != ()


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run is made of; none of it changes but the weights inside `policy`."""

    config: RunConfig
    loaded: Loaded
    renderer: Renderer
    dataset: Dataset
    rewards: Rewards
    policy: TrainedPolicy
    """Or `gspo.dist.policy.RankedPolicy`, which does the same with others."""
    sampler: Sampler
    leading: Leading
    saver: Saver
    ranks: Ranks
    reload: Callable[[Path], nn.Module]
    """See `Built`."""
    warm_up: Callable[..., int] | None
    """See `Built`."""
    source: GroupSource | EpisodeSource | OfflineSource
    collector: Collector
    terms: tuple[UnitObjective, ...]
    advantage: AdvantageEstimator
    width: int = 0
    """See `Built`."""
    repeats_old_pass: bool = False
    """See `Built`."""

    @property
    def needs_reference(self) -> bool:
        in_terms = any("reference" in term.traits.needs for term in self.terms)
        return in_terms or "reference" in self.advantage.traits.needs

    @property
    def is_offline(self) -> bool:
        """Whether completions come with the data or as pairs, and nothing is sampled."""
        return isinstance(self.source, OfflineSource) or isinstance(self.collector, PairCollector)

    def evaluation_source(self, temperature: float) -> GroupSource | EpisodeSource:
        """Held-out sampling: `samples` attempts, one when greedy."""
        assert not isinstance(self.source, OfflineSource)
        settings = self.config.evaluation
        limit = settings.max_completion_tokens or self.config.sampling.max_completion_tokens
        sampling = (
            Sampling(temperature=0.0, max_completion_tokens=limit)
            if temperature == 0
            else Sampling(temperature=temperature, max_completion_tokens=limit)
        )
        samples = 1 if temperature == 0 else settings.samples
        return self.leading.source(replace(self.source, sampling=sampling, group_size=samples, failure_limit=1.0))


def build(
    config: RunConfig, given: Given = Given(), report: Callable[[str], None] = print, with_rewards: bool = True
) -> Parts:
    """Load model, data and rewards, and put the loop's parts together."""
    dataset = given.data or load_dataset(config.data, config.seed)
    has_environment = given.environment is not None or config.environment.is_set
    reads_completions = len(dataset.train) > 0 and is_offline(dataset.train[0])
    own: dict[str, float] = {SCORE: 1.0} if reads_completions else {}
    if has_environment and config.environment.weight:
        own = {ENVIRONMENT: config.environment.weight}
    competition = competition_of(config, dataset)
    if competition is not None:
        own = dict(competition.rewards)
        if config.rewards or given.rewards:
            raise ValueError(
                f'rewards are for completions: policy = "{config.policy.name}" has its own, {" and ".join(own)}'
            )
    chosen = tuple(given.rewards) or config.rewards or (() if own else dataset.rewards)
    if reads_completions:
        refuse_sampling(config, has_environment, chosen)
    group_size = len(completions_of(dataset.train[0])) if reads_completions else config.trained_per_prompt
    if competition is not None:
        group_size = competition.size
    terms = chosen_terms(config, given, () if competition is None else competition.corrections)
    advantage = given.advantage or config.advantage
    refuse_unmet(
        config, terms, advantage, dataset, len(chosen) + len(own), group_size, units_compete=competition is not None
    )
    for phase in config.phase:
        refuse_phase(config, phase, given, dataset, len(chosen) + len(own))
    built = build_policy(
        at_servers(loading(config, given.ranks), given.servers), terms, dataset, report, given.model, given.tokenizer
    )
    policy: Any = policy_of(built.scorer, config.optimizer, given.ranks, config.ranks, pick_device(config.device))
    leading = lead_of(built.sampler, policy, config)
    if with_rewards and not chosen and not own:
        raise ValueError(
            f"the data ({dataset.reading}) brings no reward of its own; set [[rewards]] name = ... or function = "
            '"file.py:function"'
        )
    rewards = rewards_of(chosen, own, config, given.ranks) if with_rewards else Rewards([no_reward])
    common: dict[str, Any] = {
        "rows": dataset.train,
        "renderer": built.renderer,
        "sampler": leading.sampler,
        "rewards": rewards,
        "sampling": config.sampling,
        "group_size": config.group_size,
        "seed": config.seed,
        "failure_limit": config.reward_failure_limit,
    }
    source = (built.source or GroupSource)(**common, overlap_rewards=config.overlap_rewards)
    if reads_completions:
        source = OfflineSource(rows=dataset.train, renderer=built.renderer, seed=config.seed)
    if has_environment and with_rewards:
        source = EpisodeSource(
            **common,
            factory=given.environment or load_environment(config.environment),
            settings=config.environment,
            context=built.context,
        )
    collector = chosen_collector(config, source)
    if not isinstance(source, OfflineSource):
        collector = leading.collector(collector)
    return Parts(
        config=config,
        loaded=built.loaded,
        renderer=built.renderer,
        dataset=dataset,
        rewards=rewards,
        policy=policy,
        sampler=leading.sampler,
        leading=leading,
        saver=saver_of(given.ranks),
        ranks=given.ranks,
        reload=built.reload,
        warm_up=built.warm_up,
        source=source,
        collector=collector,
        terms=terms,
        advantage=advantage,
        width=built.width,
        repeats_old_pass=built.repeats_old_pass,
    )


def at_servers(config: RunConfig, servers: tuple[str, ...]) -> RunConfig:
    """The settings under which a sampler finds the servers that Ray keeps up for it."""
    if not (config.placement.places_servers and isinstance(config.sampler, ServerConfig)):
        return config
    if not servers:
        raise ValueError(
            f"placement.servers = {config.placement.servers} are there while gspo train or gspo resume runs, and no "
            "longer; to use others set placement.servers = 0, and sampler.url"
        )
    return replace(config, sampler=replace(config.sampler, url=servers), placement=PlacementConfig())


def rewards_of(chosen: Sequence[Any], own: dict[str, float], config: RunConfig, ranks: Ranks) -> Any:
    """Rewards scored in this process, or in Ray's, which rank 0 alone asks."""
    if not (config.placement.places_rewards and chosen and ranks.is_first):
        return Rewards(chosen, own)
    from gspo.placement.rewards import RayRewards

    return RayRewards(chosen, own, config.placement)


def refuse_phase(config: RunConfig, phase: Phase, given: Given, dataset: Dataset, reward_functions: int) -> None:
    """Raises ValueError, with the phase's name, where its settings ask for what the run does not have."""
    settings = phase_config(config, phase)
    try:
        terms, advantage = chosen_terms(settings, given), given.advantage or settings.advantage
        group_size = 2 if phase.pairs_from else settings.trained_per_prompt
        refuse_unmet(settings, terms, advantage, dataset, reward_functions, group_size)
    except ValueError as error:
        raise ValueError(f"phase {phase.name!r}: {error}") from None


def refuse_sampling(config: RunConfig, has_environment: bool, rewards: Sequence[Any]) -> None:
    """Raises ValueError where completions that stand in the data meet settings for sampled ones."""
    settings = config.collector
    what = {
        "an environment": has_environment,
        "rewards": bool(rewards),
        "collector.refill": settings.refill,
        "collector.drafts": bool(settings.drafts.number),
        "collector.forks": settings.forks,
    }
    wrong = [name for name, is_there in what.items() if is_there]
    if wrong:
        raise ValueError(
            f"the data brings its own completions (chosen and rejected, or completions and scores): {wrong[0]} is for "
            "sampled ones. Remove it, or rename those columns to sample from the prompts"
        )


def chosen_collector(config: RunConfig, source: GroupSource | EpisodeSource | OfflineSource) -> Collector:
    """What becomes a batch: plain groups, refinements of drafts, alternatives at turns; as they come, or refilled."""
    settings = config.collector
    groups: Source = source
    if settings.drafts.number and isinstance(source, GroupSource):
        groups = DraftThenRefine(source=source, settings=settings.drafts)
    if settings.forks:
        if not isinstance(source, EpisodeSource):
            raise ValueError("collector.forks makes alternatives at the turns of an environment: set environment")
        groups = TurnForks(source=source, continuation=settings.continuation)
    if settings.refill:
        return Refill(source=groups, prompts_per_step=config.prompts_per_step, max_rounds=settings.max_rounds)
    return Direct(source=groups, prompts_per_step=config.prompts_per_step)


def chosen_terms(
    config: RunConfig, given: Given = Given(), own: tuple[Reweighting, ...] = ()
) -> tuple[UnitObjective, ...]:
    """The objective under its corrections, the policy's `own` first; then the terms that add to it."""
    objective = given.objective or config.objective
    corrections = (*own, *config.corrections)
    if corrections:
        objective = Corrected(base=objective, corrections=corrections)
    return as_terms((objective, *config.terms, *given.terms))


def refuse_unmet(
    config: RunConfig,
    terms: Sequence[UnitObjective],
    advantage: AdvantageEstimator,
    dataset: Dataset,
    reward_functions: int,
    group_size: int,
    units_compete: bool = False,
) -> None:
    """Raises ValueError with every requirement that the run does not meet."""
    columns = dataset.train[0].keys() if len(dataset.train) else ()
    updates = config.updates_per_step * config.epochs
    problems = unmet(
        terms,
        advantage,
        group_size=group_size,
        updates_per_rollout=updates,
        columns=columns,
        reward_functions=reward_functions,
        units_compete=units_compete,
    )
    if problems:
        raise ValueError("; ".join(problems))


def no_reward(completions: list[str], **columns: Any) -> list[None]:
    """The reward of work that scores nothing."""
    return [None] * len(completions)


def frozen_reference(parts: Parts, exported: Path | None = None) -> Any:
    """The policy as it is now, for the reference log-probs; a LoRA policy is its own with adapters off.

    Many ranks read it from where it has been `exported`: none of them has all weights to copy.
    """
    if parts.config.lora.rank:
        return _without_adapters(parts)
    if parts.ranks.is_many and exported is not None:
        return saved_reference(parts, exported)
    model = copy.deepcopy(parts.loaded.model).requires_grad_(False)
    return parts.policy.scorer.with_model(model)


def saved_reference(parts: Parts, folder: Path) -> Any:
    """The reference of a run that is being resumed: the weights that it started from."""
    if parts.config.lora.rank:
        return _without_adapters(parts)
    scorer = parts.policy.scorer.with_model(parts.reload(folder).requires_grad_(False))
    return reference_of(scorer, parts.policy, parts.config.ranks)


def _without_adapters(parts: Parts) -> Any:
    scorer = parts.policy.scorer
    assert isinstance(scorer, TokenScorer | ElboScorer)
    return reference_of(replace(scorer, without_adapters=True), parts.policy, parts.config.ranks)


def export_model(parts: Parts, folder: Any) -> None:
    """An ordinary Hugging Face folder; adapters are merged into a copy."""
    model = parts.policy.plain_model()
    reader = parts.loaded.processor or parts.loaded.tokenizer

    def write() -> None:
        save_model(model, folder)
        if reader is not None:
            reader.save_pretrained(folder)

    parts.ranks.first(write)
