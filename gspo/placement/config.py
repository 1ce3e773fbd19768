"""Where a run's parts are, as settings."""

import re
from dataclasses import dataclass
from typing import Literal

from gspo.limits import at_least

Part = Literal["policy", "sampler", "server", "reward"]
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
    servers: int = 0
    """vLLM servers that Ray's processes start and keep up, for `sampler = "vllm"`; 0: those that sampler.url names."""
    server_cpus: float = 1.0
    """CPUs of each."""
    server_gpus: float = 0.0
    """GPUs of each; vLLM takes several with `--tensor-parallel-size` in `server_flags`."""
    server_python: str = ""
    """Python of the environment that vLLM is installed in; empty: this one, or that of the `vllm` command."""
    server_flags: tuple[str, ...] = ()
    """What goes to vLLM as it is, a word each, such as ["--max-model-len", "4096"]."""
    reward_workers: int = 0
    """Processes that score; 0 scores beside the policy."""
    reward_cpus: float = 1.0
    """CPUs of each."""
    policies: int = 1
    """Processes that train, each a rank (`ranks`)."""
    policy_cpus: float = 1.0
    """CPUs of each."""
    policy_gpus: float = 0.0
    """GPUs of each; with several processes 0 or 1."""
    strategy: Literal["pack", "spread"] = "pack"
    """pack: on as few machines as possible; spread: on as many as possible."""
    restarts: int = 2
    """Deaths in a row of a sampler or reward worker that a wave survives, and of a server; of the policy, in all."""
    deadline: float = 600.0
    """Seconds after which a wait for another process is given up."""

    def __post_init__(self) -> None:
        if self.on not in ("", "local", "auto") and not ADDRESS.fullmatch(self.on):
            raise ValueError(
                f'placement.on is {self.on!r}; it must be "local", "auto", an address such as "ray://10.0.0.5:10001", '
                "or empty"
            )
        at_least(self, "placement.", 0, "samplers", "servers", "reward_workers", "restarts")
        at_least(self, "placement.", 0, "sampler_gpus", "server_gpus", "policy_gpus")
        at_least(self, "placement.", 1, "policies")
        for name in ("sampler_cpus", "server_cpus", "reward_cpus", "policy_cpus", "deadline"):
            if vars(self)[name] <= 0:
                raise ValueError(f"placement.{name} is {vars(self)[name]}; it must be above 0")
        if self.policies > 1 and self.policy_gpus not in (0, 1):
            raise ValueError(
                f"placement.policies = {self.policies} are ranks, which train on a GPU each or on none, and "
                f"placement.policy_gpus is {self.policy_gpus:g}; set it to 1 or 0"
            )
        if self.servers and self.samplers:
            raise ValueError(
                f"placement.servers = {self.servers} and placement.samplers = {self.samplers} both sample; set "
                "placement.samplers = 0, or leave placement.servers out"
            )

    @property
    def is_set(self) -> bool:
        return bool(self.on)

    @property
    def places_samplers(self) -> bool:
        return self.is_set and self.samplers > 0

    @property
    def places_servers(self) -> bool:
        return self.is_set and self.servers > 0

    @property
    def places_rewards(self) -> bool:
        return self.is_set and self.reward_workers > 0

    @property
    def room(self) -> dict[Part, tuple[int, dict[str, float]]]:
        """(how many, what is reserved for each) of every kind of process, in the order of their bundles."""
        return {
            "policy": (self.policies, resources(self.policy_cpus, self.policy_gpus)),
            "sampler": (self.samplers, resources(self.sampler_cpus, self.sampler_gpus)),
            "server": (self.servers, resources(self.server_cpus, self.server_gpus)),
            "reward": (self.reward_workers, resources(self.reward_cpus)),
        }

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What is reserved, in this order: the policy, the samplers or servers, the reward workers."""
        return [reserved for number, reserved in self.room.values() for _ in range(number)]

    def bundle(self, part: Part, number: int) -> int:
        """Which of `bundles` is that of a process."""
        parts = list(self.room)
        return sum(self.room[before][0] for before in parts[: parts.index(part)]) + number


def resources(cpus: float, gpus: float = 0.0) -> dict[str, float]:
    """As Ray counts them."""
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
