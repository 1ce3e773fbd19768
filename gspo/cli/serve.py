"""`gspo serve`: this process becomes a vLLM server."""

import argparse
import os
from collections.abc import Callable, Sequence

from gspo.samplers.vllm_command import Asked, command_of


def start_vllm(args: argparse.Namespace, flags: Sequence[str], say: Callable[[str], None]) -> None:
    """Become the server: this process ends with it. Raises ValueError where there is no vLLM, or no free port."""
    asked = Asked(**vars(args), flags=tuple(flags))
    command = command_of(asked, say)
    python = command.words[0]
    say(f"vLLM {command.version} of {python} serves {asked.model} at http://{asked.host}:{asked.port}")
    os.execve(python, command.words, command.environment)
