"""Where a run's parts are, as settings."""

import re
from dataclasses import dataclass
from typing import Literal

from gspo.limits import at_least

FIRST_BUNDLE = 1
"""Of the samplers: the policy has bundle 0."""
ADDRESS = re.compile(r"ray://[^/:\s]+:\d+")


@dataclass(frozen=True, kw_only=True)
class PlacementConfig:
    """Which processes a run is made of, and what Ray reserves for each."""

    on: str = ""
    """Ray cluster: "local" starts one on this machine and ends it, "ray://host:port" or "auto" is there; "": no Ray."""
    samplers: int = 1
    """Processes that sample, each on its own copy of the weights; 0 samples where `sampler` says."""
    sampler_cpus: float = 1.0
    """CPUs of each; also its threads, rounded down."""
    sampler_gpus: float = 0.0
    """GPUs of each."""
    reward_workers: int = 0
    """Processes that score; 0 scores beside the policy."""
    reward_cpus: float = 1.0
    """CPUs of each."""
    policy_cpus: float = 1.0
    """CPUs of the process that trains."""
    policy_gpus: float = 0.0
    """GPUs of the process that trains."""
    strategy: Literal["pack", "spread"] = "pack"
    """pack: on as few machines as possible; spread: on as many as possible."""
    restarts: int = 2
    """Deaths in a row of a sampler or reward worker that a wave survives, and of the policy that a run survives."""
    deadline: float = 600.0
    """Seconds after which a wait for another process is given up."""

    def __post_init__(self) -> None:
        if self.on not in ("", "local", "auto") and not ADDRESS.fullmatch(self.on):
            raise ValueError(
                f'placement.on is {self.on!r}; it must be "local", "auto", an address such as "ray://10.0.0.5:10001", '
                "or empty"
            )
        at_least(self, "placement.", 0, "samplers", "reward_workers", "restarts", "sampler_gpus", "policy_gpus")
        for name in ("sampler_cpus", "reward_cpus", "policy_cpus", "deadline"):
            if vars(self)[name] <= 0:
                raise ValueError(f"placement.{name} is {vars(self)[name]}; it must be above 0")

    @property
    def is_set(self) -> bool:
        return bool(self.on)

    @property
    def places_samplers(self) -> bool:
        return self.is_set and self.samplers > 0

    @property
    def places_rewards(self) -> bool:
        return self.is_set and self.reward_workers > 0

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What is reserved, in this order: the policy, the samplers, the reward workers."""
        return [
            resources(self.policy_cpus, self.policy_gpus),
            *[resources(self.sampler_cpus, self.sampler_gpus)] * self.samplers,
            *[resources(self.reward_cpus)] * self.reward_workers,
        ]


def resources(cpus: float, gpus: float = 0.0) -> dict[str, float]:
    """As Ray counts them."""
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
