"""Where prompts come from: built-in tasks, files, the hub; and in which order a run reads them."""

import csv
import difflib
import functools
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gspo.rewards.base import RewardConfig
from gspo.tasks import load_task
from gspo.tasks.base import SPLIT_SEED, Dataset, Row, Rows, answer_equals, permutation

__all__ = ["DataConfig", "Dataset", "Row", "Rows", "hold_out", "load_dataset", "order", "rows_at"]

ANSWERS = ("answer", "solution", "ground_truth")
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The prompts of a run: a built-in task, or a path."""

    task: str = ""
    """Built-in task: addition, two_words, digits, ..., reasoning_gym/<dataset>; empty without a path: addition."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the task, such as digits of addition, or size, min_terms and instruction of a reasoning-gym one."""
    path: str = ""
    """A .jsonl, .json, .parquet or .csv file, a folder of them, or the id of a dataset on the hub."""
    split: str = "train"
    """Split to train on, where the path has several."""
    held_out_path: str = ""
    """Rows to evaluate on, read like `path`; empty holds some out of the training rows."""
    held_out_split: str = ""
    """Split of `held_out_path` (or of `path`) to evaluate on."""
    held_out_prompts: int = 200
    """Prompts to evaluate on; where they come out of a file's training rows, at most a tenth of its prompts."""
    prompt_column: str = ""
    """Column that holds the prompt; empty: `prompt`, or `messages`."""
    template: str = ""
    """Makes a text prompt of a row's columns, such as "Question: {question}\\nAnswer:"."""

    def __post_init__(self):
        if self.path and (self.task or self.options):
            wrong = "task" if self.task else "options"
            raise ValueError(f"data has both path = {self.path!r} and {wrong}: remove one of them")
        for name in ("held_out_path", "held_out_split", "prompt_column", "template"):
            if not self.path and vars(self)[name]:
                raise ValueError(f"data.{name} is for files: set data.path, or remove it")
        if self.template and self.prompt_column:
            raise ValueError("data.template makes the prompt itself: remove data.prompt_column")
        if self.held_out_prompts < 0:
            raise ValueError(f"data.held_out_prompts = {self.held_out_prompts} must not be negative")


def load_dataset(config: DataConfig, seed: int) -> Dataset:
    """Reads the data. `seed` draws the training questions of generated tasks; it never moves the held-out rows."""
    if config.path:
        return _from_path(config)
    return load_task(config.task or "addition", config.options, seed=seed, held_out_prompts=config.held_out_prompts)


@functools.lru_cache(maxsize=4)
def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of n rows in one epoch: a function of its arguments. Read-only, int64."""
    found = permutation(seed, epoch, n)
    found.setflags(write=False)
    return found


def rows_at(cursor: int, count: int, n: int, seed: int) -> list[int]:
    """Row indices of prompts number cursor .. cursor + count - 1 of the endless sequence of epochs over n rows.

    Each epoch is a fresh permutation, and the cursor is all the state there is:
    rows_at(0, a) + rows_at(a, b) = rows_at(0, a + b).
    """
    if n < 1:
        raise ValueError("there are no rows to train on")
    found: list[int] = []
    while count > 0:
        epoch, position = divmod(cursor, n)
        taken = order(seed, epoch, n)[position : position + count].tolist()
        found += taken
        cursor, count = cursor + len(taken), count - len(taken)
    return found


# ---- files -------------------------------------------------------------------------------------------------


def _from_path(config: DataConfig) -> Dataset:
    rows, layout = _rows(config, config.path, config.split)
    if config.held_out_path or config.held_out_split:
        held_path = config.held_out_path or config.path
        held_out, _ = _rows(config, held_path, config.held_out_split or config.split)
        held_out = held_out[: config.held_out_prompts]
        train, source = rows, f"held out from {held_path} {config.held_out_split}".rstrip()
        known = {_key(row) for row in train}
        shared = sum(_key(row) in known for row in held_out)
        split = f"{len(held_out):,} {source}, {shared} of their prompts also in the training rows"
    else:
        train, held_out = hold_out(rows, config.held_out_prompts)
        dropped = len(rows) - len(train) - len(held_out)
        split = f"{len(held_out):,} prompts held out of them by a fixed permutation"
        split += f", {dropped} repeats of those dropped" if dropped else ""
    has_answer = all("answer" in row for row in [*train, *held_out])
    rewards, default = _default_rewards(train, layout) if has_answer else ((), "")
    is_sft = all("completion" in row for row in train)
    return Dataset(
        name=config.path,
        train=train,
        held_out=held_out,
        rewards=rewards,
        is_correct=answer_equals if has_answer else None,
        reading=f"{config.path}: {layout}; {len(train):,} rows to train on, {split}{default}",
        cold_start=train if is_sft else (),
    )


def _default_rewards(rows: Sequence[Row], layout: str) -> tuple[tuple[RewardConfig, ...], str]:
    """A guess that the reading owns up to: `math` for solutions and verl's ground truth, `exact` for answers."""
    is_math = "solution" in rows[0] or "ground_truth" in rows[0] or layout.startswith("verl")
    name = "math" if is_math else "exact"
    return (RewardConfig(name=name),), f"; reward {name!r} against the column `answer` unless rewards are set"


def hold_out(rows: list[Row], wanted: int) -> tuple[list[Row], list[Row]]:
    """Whole prompts are held out: a row with the same prompt as a held-out one is not trained on."""
    prompts = list(dict.fromkeys(_key(row) for row in rows))
    count = min(wanted, len(prompts) // 10) or min(wanted, 1, len(prompts) - 1)
    chosen = {prompts[i]: None for i in permutation(SPLIT_SEED, 0, len(prompts))[:count]}
    held: dict[str, Row] = {}
    for row in rows:
        if (key := _key(row)) in chosen:
            held.setdefault(key, row)
    return [row for row in rows if _key(row) not in chosen], list(held.values())


def _key(row: Row) -> str:
    return row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"], sort_keys=True, default=str)


def _rows(config: DataConfig, path: str, split: str) -> tuple[list[Row], str]:
    """The rows of a path in our columns, and the layout they were recognised as."""
    numbered = _read(path, split)
    if not numbered:
        raise ValueError(f"{path} has no rows")
    columns = list(dict.fromkeys(name for _, row in numbered[:100] for name in row))
    is_pair = {"chosen", "rejected"} <= set(columns)
    if is_pair and not {"prompt", "messages", config.prompt_column} & set(columns) and not config.template:
        numbered = [(where, _with_prompt(row, where)) for where, row in numbered]
        columns = [*columns, "prompt"]
    layout, column = _layout(config, columns, path)
    rows = [_normal(row, column, config.template, where) for where, row in numbered]
    if is_pair or {"completions", "scores"} <= set(columns):
        layout += ": completions to learn from, nothing is sampled"
    layout += f" (prompts are {'text' if isinstance(rows[0]['prompt'], str) else 'messages'})"
    if "answer" not in columns and (column := _answer_column(columns)):
        places = [where for where, _ in numbered]
        rows = [{**row, "answer": _answer(row, column, at)} for row, at in zip(rows, places, strict=True)]
        layout += f", `answer` taken from {column}"
    return rows, layout


def _layout(config: DataConfig, columns: list[str], path: str) -> tuple[str, str]:
    """(what the columns look like, the prompt's column; empty where a template makes the prompt)."""
    shown = ", ".join(columns)
    if config.template:
        return f"prompts from the template, columns {shown}", ""
    column = config.prompt_column or next((c for c in ("prompt", "messages") if c in columns), "")
    if column not in columns:
        near = difflib.get_close_matches(column or "prompt", columns, n=1)
        near = near or [c for c in columns if c in ("question", "problem", "query", "input", "text")] or columns[:1]
        wanted = f"no column {column!r}" if column else "no column `prompt` or `messages`"
        remedy = f"set prompt_column, perhaps to {near[0]!r}, or template"
        raise ValueError(f"{path} has {wanted} (columns: {shown}); {remedy}")
    if {"data_source", "reward_model"} <= set(columns):
        return f"verl columns {shown}", column
    return f"TRL columns {shown}" if column == "prompt" else f"prompts from {column}, columns {shown}", column


def _normal(row: Row, column: str, template: str, where: str) -> Row:
    """The row with a checked `prompt`; a last assistant message of `messages` becomes its `completion`."""
    if template:
        try:
            prompt: Any = template.format_map(row)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"{where}: template {template!r} needs {error} (columns: {', '.join(row)})") from None
        return {**row, "prompt": prompt}
    prompt = row.get(column)
    row = {name: value for name, value in row.items() if name != column}
    completion = row.get("completion")
    if column == "messages" and isinstance(prompt, list) and prompt and prompt[-1].get("role") == "assistant":
        prompt, completion = prompt[:-1], prompt[-1]["content"]
    if isinstance(completion, list) and completion:
        completion = completion[-1]["content"]
    if not _is_prompt(prompt):
        raise ValueError(
            f"{where}: {column} is {prompt!r:.80}; it must be text, or a list of messages with role and content"
        )
    return {"prompt": prompt, **row, **({} if completion is None else {"completion": completion})}


def _with_prompt(row: Row, where: str) -> Row:
    from gspo.collectors.offline import split_prompt

    try:
        return split_prompt(row)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _is_prompt(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value)
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(message, dict) and {"role", "content"} <= set(message) for message in value)
    )


def _answer_column(columns: list[str]) -> str:
    if "reward_model" in columns:
        return "reward_model.ground_truth"
    return next((name for name in ANSWERS if name in columns), "")


def _answer(row: Row, column: str, where: str) -> Any:
    first, _, second = column.partition(".")
    try:
        return row[first][second] if second else row[first]
    except (KeyError, TypeError):
        raise ValueError(f"{where}: no {column}, which other rows have") from None


# ---- readers: each gives (where, row) pairs, `where` for messages --------------------------------------------

Numbered = list[tuple[str, Row]]


def _read(path: str, split: str) -> Numbered:
    file = Path(path).expanduser()
    if file.is_dir():
        return _read_folder(file, split)
    if file.is_file():
        if file.suffix not in SUFFIXES:
            raise ValueError(f"{path}: cannot read {file.suffix or 'this'} files; convert to {', '.join(SUFFIXES)}")
        return READERS[file.suffix](file)
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", path) and file.suffix not in SUFFIXES
    if not is_hub_id:
        folder = file.parent
        beside = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        near = difflib.get_close_matches(file.name, beside, n=1)
        hint = f"; did you mean {folder / near[0]}?" if near else f" (looked in {folder.resolve()})"
        raise ValueError(f"no file {path}{hint}")
    return _read_hub(path, split)


def _read_folder(folder: Path, split: str) -> Numbered:
    """The files of one split by their names, all of one kind; or a dataset that `datasets` saved to disk."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        found = _datasets().load_from_disk(str(folder))
        if isinstance(found, dict):
            if split not in found:
                raise ValueError(f"{folder} has no split {split!r}; it has: {', '.join(found)}")
            found = found[split]
        return [(f"{folder} row {i + 1}", row) for i, row in enumerate(found)]
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in SUFFIXES)
    if not files:
        raise ValueError(f"{folder} has no {', '.join(SUFFIXES)} file")
    of_split = [p for p in files if re.match(rf"{re.escape(split)}([-_.]|$)", p.name) or p.parent.name == split]
    if not of_split and (len(files) > 1 or split != "train"):
        names = ", ".join(p.name for p in files[:5])
        raise ValueError(f"{folder} has no file of split {split!r} (files: {names}); name the file, or set split")
    return [row for file in of_split or files for row in READERS[file.suffix](file)]


def _read_jsonl(file: Path) -> Numbered:
    rows: Numbered = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{file}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                what = f"{error.msg} at column {error.colno}"
                raise ValueError(f"{where}: not JSON: {what}; write one object per line") from None
            rows.append((where, _object(row, where)))
    return rows


def _read_json(file: Path) -> Numbered:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        hint = "; one object per line belongs in a .jsonl file" if error.msg == "Extra data" else ""
        raise ValueError(f"{file}:{error.lineno}: not JSON: {error.msg} at column {error.colno}{hint}") from None
    if not isinstance(values, list):
        raise ValueError(f"{file} holds one {type(values).__name__}; it must be a list of objects")
    return [(f"{file} item {i}", _object(value, f"{file} item {i}")) for i, value in enumerate(values, 1)]


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise ValueError(f'{where}: a {kind} is no row; each must be an object such as {{"prompt": ...}}')
    return value


def _read_csv(file: Path) -> Numbered:
    rows: Numbered = []
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        for row in reader:
            where = f"{file}:{reader.line_num}"
            if None in row or None in row.values():
                count = len(reader.fieldnames or ())
                raise ValueError(f"{where}: not the header's {count} fields; put quotes around text with commas")
            rows.append((where, dict(row)))
    return rows


def _read_parquet(file: Path) -> Numbered:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not a Parquet file: {' '.join(str(error).split())}") from None
    return [(f"{file} row {i}", row) for i, row in enumerate(table.to_pylist(), 1)]


READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}


def _datasets():
    if importlib.util.find_spec("datasets") is None:
        raise ValueError('reading from the hub needs the datasets package: pip install "gspo[datasets]"')
    import datasets

    return datasets


def _read_hub(name: str, split: str) -> Numbered:
    try:
        found = _datasets().load_dataset(name, split=split)
    except ValueError as error:
        raise ValueError(f"hub dataset {name!r}, split {split!r}: {' '.join(str(error).split())}") from error
    except (OSError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"no file {name!r}, and no such dataset could be read from the hub: {text}") from error
    return [(f"{name} row {i}", row) for i, row in enumerate(found, 1)]
