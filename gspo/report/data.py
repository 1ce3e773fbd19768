"""Read a run folder. Every piece but the first line may be missing: a report of an unfinished run is useful."""

import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Line = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What each sequence did in each update, columns of equal length."""

    step: np.ndarray
    update: np.ndarray
    group: np.ndarray
    index: np.ndarray
    length: np.ndarray
    log_ratio: np.ndarray
    bound: np.ndarray
    clipped_low: np.ndarray | None
    """Clipped tokens of the sequence; present when the objective's ratio belongs to the token."""
    clipped_high: np.ndarray | None
    gradient_share: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        """exp(log_ratio), bounded where a broken policy would overflow."""
        return np.exp(np.clip(self.log_ratio, -50, 50))

    @property
    def is_token_level(self) -> bool:
        return self.clipped_low is not None


@dataclass(frozen=True, kw_only=True)
class Run:
    path: Path
    settings: str
    """`config.toml` as it was written."""
    lines: tuple[Line, ...]
    """`metrics.jsonl`, one mapping per step, in order of steps."""
    rollouts: tuple[Path, ...]
    ledger: Ledger | None
    summary: Mapping[str, Any]
    unreadable: tuple[str, ...]
    """Files that exist but could not be read, such as one being written."""

    def declared(self, name: str) -> Any:
        """What the summary says of `name`, or, in an unfinished run, the setting of that name."""
        return self.summary.get(name) or (parse_settings(self.settings) or {}).get(name)

    @property
    def training(self) -> tuple[Line, ...]:
        return tuple(line for line in self.lines if line["step"] > 0)


def parse_settings(text: str) -> dict[str, Any] | None:
    """None when the text is not TOML: a hand-edited file must not cost the report."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


def read_run(path: Path) -> Run:
    lines, bad_lines = _read_lines(path / "metrics.jsonl")
    summary_file, settings_file = path / "summary.json", path / "config.toml"
    rollouts = tuple(sorted((path / "rollouts").glob("step_*.parquet")))
    if not (lines or rollouts or summary_file.exists()):
        raise ValueError(f"no run in {path}: give the folder a training run wrote, with its metrics.jsonl")
    ledger, bad_tables = _read_ledger(sorted((path / "ledger").glob("step_*.parquet")))
    return Run(
        path=path,
        settings=settings_file.read_text("utf-8") if settings_file.exists() else "",
        lines=lines,
        rollouts=rollouts,
        ledger=ledger,
        summary=json.loads(summary_file.read_text("utf-8")) if summary_file.exists() else {},
        unreadable=(*bad_lines, *bad_tables),
    )


def column(lines: Sequence[Line], name: str) -> list[float]:
    return [line.get(name, math.nan) for line in lines]


def names_under(lines: Sequence[Line], prefix: str) -> list[str]:
    """Logged names that start with `prefix`, in the order in which they first appear."""
    return list(dict.fromkeys(name for line in lines for name in line if name.startswith(prefix)))


def read_table(path: Path) -> pa.Table | None:
    """None when the file cannot be read: a run that is still going may be writing it."""
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError):
        return None


def number(value: Any) -> float:
    """JSON writes a missing number as null."""
    return float(value) if isinstance(value, int | float) else math.nan


def _read_lines(path: Path) -> tuple[tuple[Line, ...], list[str]]:
    """One mapping per step; what a later line says of the same step is added to it."""
    if not path.exists():
        return (), []
    steps: dict[int, dict[str, float]] = {}
    unreadable = []
    for count, text in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
        try:
            line = json.loads(text)
            steps.setdefault(int(line["step"]), {}).update({name: number(line[name]) for name in line})
        except (ValueError, KeyError, TypeError):
            unreadable.append(f"{path.name} line {count}")
    return tuple(steps[step] for step in sorted(steps)), unreadable


def _read_ledger(paths: Iterable[Path]) -> tuple[Ledger | None, list[str]]:
    tables, unreadable = [], []
    for path in paths:
        table = read_table(path)
        if table is None:
            unreadable.append(f"{path.parent.name}/{path.name}")
        else:
            tables.append(table)
    if not tables:
        return None, unreadable
    table = pa.concat_tables(tables, promote_options="default")
    columns = {name: _values(table, name) for name in Ledger.__dataclass_fields__}
    return Ledger(**columns), unreadable


def _values(table: pa.Table, name: str) -> np.ndarray | None:
    if name in table.column_names:
        # A step whose rows all skipped the network has no counts of clipped tokens.
        column = table[name].fill_null(0) if name.startswith("clipped_") else table[name]
        return column.to_numpy()
    if name.startswith("clipped_"):
        return None
    return np.full(table.num_rows, "none" if name == "bound" else np.nan)
