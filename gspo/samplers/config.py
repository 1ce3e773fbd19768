"""Where completions come from, as settings."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Discriminator

InFlight = Literal["finish", "restart"]


@dataclass(frozen=True, kw_only=True)
class InProcessConfig:
    """The weights that train, in the process that trains them."""

    name: Literal["in_process"] = "in_process"


@dataclass(frozen=True, kw_only=True)
class ProcessConfig:
    """A copy of the weights in another process of this machine: it samples while this one trains (`max_policy_lag`)."""

    name: Literal["process"] = "process"
    device: str = ""
    """Where it samples, such as cuda:1; empty: on the device that trains."""
    threads: int = 1
    """Its CPU threads."""
    restarts: int = 2
    """Times in a row that a process which dies is started again, with the same completions to draw."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"sampler.threads is {self.threads}; it must be at least 1")
        if self.restarts < 0:
            raise ValueError(f"sampler.restarts is {self.restarts}; it must not be negative")


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Inference servers over HTTP: vLLM's, started by `gspo serve MODEL`, or SGLang's (written from its protocol and
    tested against an imitation of it)."""

    name: Literal["vllm", "sglang"] = "vllm"
    url: str | tuple[str, ...] = ""
    """Address of the server, or a list of them: requests are spread over all. Empty: this machine, at the port that the
    server takes of itself (vLLM 8000, SGLang 30000)."""
    shared: str = ""
    """Folder for the weights, on a disk that the servers read too; empty: in this machine's temporary folder."""
    lora: Literal["merged", "adapter"] = "merged"
    """How a LoRA policy is sent. merged: whole, its adapters added in; adapter: they alone, which vLLM keeps apart as
    the policy does (`gspo serve MODEL --lora-rank R`)."""
    in_flight: InFlight = "finish"
    """Completions under way at a weight update. finish: they end under the weights that began them; restart: they are
    dropped and drawn again from the new weights (sooner ready, and long completions come out rarer)."""
    timeout: float = 300.0
    """Seconds after which a request without an answer is given up and asked again, elsewhere if possible."""
    deadline: float = 900.0
    """Seconds of asking again, with growing pauses, after which the run saves its state and stops."""

    def __post_init__(self) -> None:
        refuse_unreachable(self)
        if self.lora == "adapter" and self.name != "vllm":
            raise ValueError('sampler.lora = "adapter" is for sampler.name = "vllm"; use "merged"')


SamplerConfig = Annotated[InProcessConfig | ProcessConfig | ServerConfig, Discriminator("name")]
"""What a recipe may name under `sampler`."""
PORTS = {"vllm": 8000, "sglang": 30000}


def urls(config: ServerConfig) -> tuple[str, ...]:
    """Addresses, at least one."""
    if not config.url:
        return (f"http://127.0.0.1:{PORTS[config.name]}",)
    return (config.url,) if isinstance(config.url, str) else config.url


def restarts(config: "SamplerConfig") -> bool:
    """Whether completions under way are begun again when the weights change."""
    return isinstance(config, ServerConfig) and config.in_flight == "restart"


def refuse_unreachable(config: ServerConfig) -> None:
    """Raises ValueError for an address that is none, and for waits that cannot end."""
    for url in urls(config):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"sampler.url is {url!r}; it must begin with http:// or https://")
    if len(set(urls(config))) < len(urls(config)):
        raise ValueError(f"sampler.url is {list(urls(config))}: it must name each server once")
    for name in ("timeout", "deadline"):
        if getattr(config, name) <= 0:
            raise ValueError(f"sampler.{name} is {getattr(config, name)}; it must be above 0")
