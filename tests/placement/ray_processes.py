"""Finding Ray's processes of this test session by what they do."""

import os
import time
from pathlib import Path


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _is_ours(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = _parent(pid)
    return False


def pids_of(title: str) -> list[int]:
    """Descendants of this process whose title begins with ray::TITLE."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
            if line.startswith(f"ray::{title}") and _is_ours(int(folder.name)):
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    return found


def waited_pid(title: str, seconds: float = 60.0) -> int:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := pids_of(title):
            return found[0]
        time.sleep(0.02)
    raise AssertionError(f"no process ray::{title}")
