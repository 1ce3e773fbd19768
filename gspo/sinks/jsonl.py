"""`metrics.jsonl`: the log that is always written, one JSON object per line."""

import json
import math
import os
from pathlib import Path

from gspo.sinks.base import Record


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity; null is what every reader understands."""
    return value if math.isfinite(value) else None


class JsonlSink:
    """Appends one line per record and flushes it, so a killed run loses at most one line."""

    def __init__(self, path: Path | str):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        line = {"step": record.step} | {name: _finite(value) for name, value in record.metrics.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def truncate_after(path: Path | str, step: int) -> None:
    """Remove the lines of later steps and a torn last line: what a resumed run does before it appends.

    The file is replaced in one move, so that being killed here loses nothing. A missing file is a run that
    stopped before its first line.
    """
    path = Path(path)
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    kept = [line for number, line in enumerate(lines, 1) if _step_of(line, path, number) <= step]
    replacement = path.with_name(path.name + ".new")
    replacement.write_bytes(b"".join(kept))
    os.replace(replacement, path)


def _step_of(line: bytes, path: Path, number: int) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}, line {number} is not a step's JSON object: repair or delete it") from error
