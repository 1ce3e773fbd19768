"""The parts of a run that know of ranks. In one process they are the plain ones, without torch.distributed."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch

from gspo.collectors.base import Collector
from gspo.config import RunConfig
from gspo.dist.config import RanksConfig
from gspo.dist.ranks import Ranks
from gspo.placement.config import PlacementConfig
from gspo.policies.config import CausalLMConfig
from gspo.policies.master import AdamW
from gspo.policies.trained import Scorer, TrainedPolicy
from gspo.samplers.base import Sampler
from gspo.samplers.config import InProcessConfig, ProcessConfig
from gspo.training.state import FileSaver, Saver

if TYPE_CHECKING:
    from gspo.dist.policy import RankedPolicy, RankedScorer


class Leading(Protocol):
    """Who samples, and who calls what samples."""

    @property
    def sampler(self) -> Sampler: ...
    def collector(self, collector: Collector) -> Collector: ...
    def beside(self, collector: Collector) -> Collector:
        """A led collector as a thread of rank 0 calls it, while the ranks train."""
        ...

    def source(self, source: Any) -> Any:
        """For held-out questions."""
        ...


class Unled:
    """One process does it all."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def collector(self, collector: Collector) -> Collector:
        return collector

    def beside(self, collector: Collector) -> Collector:
        return collector

    def source(self, source: Any) -> Any:
        return source


def policy_of(
    scorer: Scorer, optimizer: AdamW, ranks: Ranks, settings: RanksConfig, device: torch.device
) -> "TrainedPolicy | RankedPolicy":
    """The policy behind a scorer, its weights laid out over the ranks that there are."""
    if not ranks.is_many:
        return TrainedPolicy(scorer, optimizer)
    from gspo.dist.policy import RankedPolicy
    from gspo.dist.shards import place

    placement = place(scorer.network, ranks, settings, device)
    return RankedPolicy(TrainedPolicy(scorer, optimizer, placement.total_norm), ranks, placement)


def reference_of(
    scorer: Scorer, policy: "TrainedPolicy | RankedPolicy", settings: RanksConfig
) -> "Scorer | RankedScorer":
    """What the policy is compared with: a frozen model laid out like the policy, or the policy's own under another
    scorer."""
    if isinstance(policy, TrainedPolicy):
        return scorer
    from gspo.dist.policy import RankedScorer
    from gspo.dist.shards import place

    placement = policy.placement
    if scorer.network is not policy.network:
        placement = place(scorer.network, policy.ranks, settings, policy.network.device)
    return RankedScorer(scorer=scorer, ranks=policy.ranks, placement=placement)


def lead_of(sampler: Sampler, policy: "TrainedPolicy | RankedPolicy", config: RunConfig) -> Leading:
    """A sampler with weights of its own is rank 0's alone."""
    if isinstance(policy, TrainedPolicy):
        return Unled(sampler)
    from gspo.dist.sampler import Lead, LoneSampler, SharedSampler

    ranks = policy.ranks
    shared = LoneSampler(sampler, ranks) if samples_apart(config) else SharedSampler(sampler, ranks)
    return Lead(ranks=ranks, policy=policy, sampler=shared)


def samples_apart(config: RunConfig) -> bool:
    """Whether the sampler has weights of its own: on servers, in another process, in Ray's."""
    return config.placement.places_samplers or not isinstance(config.sampler, InProcessConfig)


def saver_of(ranks: Ranks) -> Saver:
    if not ranks.is_many:
        return FileSaver()
    from gspo.dist.saving import ShardSaver

    return ShardSaver(ranks)


def loading(config: RunConfig, ranks: Ranks) -> RunConfig:
    """The settings that a rank loads its model by: what will lie in shards comes from the CPU's memory, layer by layer,
    and a sampler with weights of its own is rank 0's alone."""
    if not ranks.is_many:
        return config
    asked = config.sampler
    if not ranks.is_first and samples_apart(config):
        assert isinstance(config.policy, CausalLMConfig)  # the settings refuse such samplers of other policies
        policy = replace(config.policy, sampler_dtype="auto")
        here = InProcessConfig()
        config = replace(config, sampler=here, placement=PlacementConfig(), max_policy_lag=0, policy=policy)
    if config.ranks.sharding == "none":
        return config
    if ranks.is_first and isinstance(asked, ProcessConfig) and not asked.device:
        config = replace(config, sampler=replace(asked, device=config.device))
    return replace(config, device="cpu")
