"""Loads reward functions and calls them in their own signature, one outcome per row.

Standard library only, and no import from gspo: the worker process (worker.py) loads this file by its path, so
that a checker starts without torch.
"""

import asyncio
import difflib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Outcome = tuple[str, float, str]
"""(status, value, message): status as gspo.types.RewardStatus; value NaN unless "ok"; message for failures."""

TIMEOUT: Outcome = ("timeout", math.nan, "")
OWN = ("prompts", "prompt", "completions", "completion", "completion_ids", "solution_str")
"""Arguments that scoring itself supplies; every other argument is a column of the data."""


def load_function(spec: str, *, append_folder: bool = True) -> Callable:
    """The function named by "path/to/file.py:function".

    The file's folder goes to the end of the import path, so that a file next to it can be imported and nothing
    installed is hidden.
    """
    file, colon, name = spec.rpartition(":")
    if not colon or not file or not name:
        raise ValueError(f"{spec!r} does not name a function: write path/to/file.py:function")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"no file {path} (from {spec!r}){hint}")
    if append_folder and str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = _import_file(path)
    names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
    if not callable(vars(module).get(name)):
        near = difflib.get_close_matches(name, names, n=1) or names[:3]
        hint = f"did you mean {', '.join(near)}?" if near else "it defines no function"
        raise ValueError(f"{path} has no function {name!r}; {hint}")
    return vars(module)[name]


def _import_file(path: Path):
    """Runs a file as a module of a private name; its errors become one line that says where."""
    module_name = f"_gspo_file_{path.stem}_{abs(hash(str(path))):x}"
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    if module_spec is None or module_spec.loader is None:
        raise ValueError(f"{path} is not a Python file: a function lives in a file that ends in .py")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_name] = module  # dataclasses and pickle look their module up here
    try:
        module_spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"{error.filename}:{error.lineno}: SyntaxError: {error.msg}") from error
    except Exception as error:
        raise ValueError(f"{describe(error, str(path))} while importing {path.name}") from error
    return module


def describe(error: BaseException, file: str = "") -> str:
    """One line: where in `file` (or at the innermost frame) and what."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if frame.filename == file] or frames
    where = f" ({inside[-1].filename}:{inside[-1].lineno})" if inside else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"


@dataclass(frozen=True, kw_only=True)
class Signature:
    """How a reward function wants to be called."""

    kind: str
    """"batch": lists of rows (TRL); "row": one row, `completion` is text; "verl": compute_score of one row."""
    is_async: bool
    accepts: tuple[str, ...]
    """Argument names it takes, options excluded."""
    takes_any: bool
    """It has **kwargs, so every column is passed."""
    required: tuple[str, ...]
    """Columns without which it cannot be called."""

    def columns(self, available: list[str]) -> list[str]:
        """The columns to pass, out of those the data has."""
        return [c for c in available if c not in OWN and (self.takes_any or c in self.accepts)]


def signature_of(function: Callable, options: dict[str, Any]) -> Signature:
    """Reads the kind from argument names. Raises ValueError for options the function does not take."""
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    check_options(options, list(named), takes_any)
    free = {n: p for n, p in named.items() if n not in options}
    if "solution_str" in free and "completions" not in free:
        kind = "verl"
    elif "completion" in free and "completions" not in free:
        kind = "row"
    elif "completions" in free or takes_any:
        kind = "batch"
    else:
        raise ValueError(
            f"arguments ({', '.join(parameters)}) fit no known signature: take completions (lists, as TRL), "
            "completion (one row), or solution_str and ground_truth (verl)"
        )
    call = function if inspect.isfunction(function) or inspect.ismethod(function) else type(function).__call__
    required = [n for n, p in free.items() if p.default is p.empty and n not in OWN]
    return Signature(
        kind=kind,
        is_async=inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call),
        accepts=tuple(free),
        takes_any=takes_any,
        required=tuple(required),
    )


def check_options(options: dict[str, Any], known: list[str], takes_any: bool = False) -> None:
    """Refuses options that are not arguments, with the nearest name."""
    for name in options:
        if name not in known and not takes_any:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes: {', '.join(known) or 'none'}"
            raise ValueError(f"no option {name!r}; {hint}")


def outcome_of(value: Any) -> Outcome:
    """Tells a score from the ways of having none. verl's dict counts by its "score"."""
    if isinstance(value, dict):
        if "score" not in value:
            return ("error", math.nan, f"returned a dict without 'score' (keys: {', '.join(map(str, value))})")
        value = value["score"]
    if value is None:
        return ("none", math.nan, "")
    try:
        number = float(value)
    except (TypeError, ValueError):
        return ("error", math.nan, f"returned {value!r:.60}, which is not a number")
    if isinstance(value, str):
        return ("error", math.nan, f"returned the text {value!r:.60}, not a number")
    return ("ok", number, "") if math.isfinite(number) else ("nan", math.nan, f"returned {number}")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B rows to score: plain lists, so that it can be pickled to a worker."""

    prompts: list
    texts: list[str]
    completions: list
    """Texts, or one assistant message in a list where the prompt is messages."""
    completion_ids: list[list[int]]
    columns: dict[str, list]

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, start: int, stop: int) -> "Batch":
        return Batch(
            prompts=self.prompts[start:stop],
            texts=self.texts[start:stop],
            completions=self.completions[start:stop],
            completion_ids=self.completion_ids[start:stop],
            columns={name: values[start:stop] for name, values in self.columns.items()},
        )

    def keeping(self, columns: list[str]) -> "Batch":
        kept = {name: self.columns[name] for name in columns}
        return Batch(**{**vars(self), "columns": kept})


def ground_truths(columns: dict[str, list]) -> list | None:
    """verl's ground truth of each row, wherever the data keeps it."""
    if "ground_truth" in columns:
        return columns["ground_truth"]
    if "reward_model" in columns:
        return [spec["ground_truth"] for spec in columns["reward_model"]]
    return columns.get("answer")


@dataclass(frozen=True)
class Call:
    """A function bound to its options and signature; one outcome per row."""

    function: Callable
    options: dict[str, Any]
    signature: Signature

    def over(self, batch: Batch) -> Iterator[tuple[int, Outcome]]:
        """(row, outcome) as they are known. For functions that are not async."""
        if self.signature.kind != "batch":
            for i in range(len(batch)):
                yield i, self._attempt(lambda i=i: outcome_of(self.function(**self._row(batch, i))))
            return
        try:
            outcomes = self._outcomes(self.function(**self._lists(batch)), len(batch))
        except (Exception, SystemExit) as error:
            if len(batch) == 1:
                yield 0, self._error(error)
                return
            # Row by row, so that only the rows that really raise are lost.
            for i in range(len(batch)):
                yield (
                    i,
                    self._attempt(lambda i=i: self._outcomes(self.function(**self._lists(batch.rows(i, i + 1))), 1)[0]),
                )
            return
        yield from enumerate(outcomes)

    async def over_async(self, batch: Batch, timeout: float) -> list[Outcome]:
        """All outcomes of an async function; the rows that miss the deadline are timeouts."""
        if self.signature.kind == "batch":
            try:
                found = await asyncio.wait_for(self.function(**self._lists(batch)), timeout)
                return self._outcomes(found, len(batch))
            except TimeoutError:
                return [TIMEOUT] * len(batch)
            except Exception as error:
                return [self._error(error)] * len(batch)
        # One loop for all rows: fifty calls to a judge model wait together.
        return list(await asyncio.gather(*(self._one_async(batch, i, timeout) for i in range(len(batch)))))

    async def _one_async(self, batch: Batch, i: int, timeout: float) -> Outcome:
        try:
            return outcome_of(await asyncio.wait_for(self.function(**self._row(batch, i)), timeout))
        except TimeoutError:
            return TIMEOUT
        except Exception as error:
            return self._error(error)

    def _attempt(self, produce: Callable[[], Outcome]) -> Outcome:
        try:
            return produce()
        except (Exception, SystemExit) as error:
            return self._error(error)

    def _error(self, error: BaseException) -> Outcome:
        code = inspect.unwrap(self.function)
        file = code.__code__.co_filename if inspect.isfunction(code) else ""
        is_ours = isinstance(error, ValueError) and Path(file).parent == Path(__file__).parent
        status = "timeout" if isinstance(error, TimeoutError) else "error"
        return (status, math.nan, str(error) if is_ours else describe(error, file))

    def _outcomes(self, values: Any, count: int) -> list[Outcome]:
        """A batch function's list, checked for its length: a wrong one cannot be matched to rows."""
        try:
            values = list(values)
        except TypeError:
            message = f"returned {type(values).__name__}, not a list with one score per completion"
            return [("error", math.nan, message)] * count
        if len(values) != count:
            return [("error", math.nan, f"returned {len(values)} scores for {count} completions")] * count
        return [outcome_of(value) for value in values]

    def _lists(self, batch: Batch) -> dict[str, Any]:
        own = {"prompts": batch.prompts, "completions": batch.completions, "completion_ids": batch.completion_ids}
        return self._accepted({**self._columns(batch), **own})

    def _row(self, batch: Batch, i: int) -> dict[str, Any]:
        columns = {name: values[i] for name, values in self._columns(batch).items()}
        own = {"prompt": batch.prompts[i], "completion_ids": batch.completion_ids[i]}
        if self.signature.kind == "verl":
            truths = ground_truths(batch.columns)
            if truths is not None:
                columns["ground_truth"] = truths[i]
            return self._accepted({**columns, **own, "solution_str": batch.texts[i]})
        return self._accepted({**columns, **own, "completion": batch.texts[i]})

    def _columns(self, batch: Batch) -> dict[str, list]:
        return {name: batch.columns[name] for name in self.signature.columns(list(batch.columns))}

    def _accepted(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if not self.signature.takes_any:
            arguments = {n: value for n, value in arguments.items() if n in self.signature.accepts}
        return {**arguments, **self.options}
