"""Scores a wave of completions with several reward functions, each failure told apart from a score of 0."""

import asyncio
import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gspo.rewards.base import RewardConfig, Scored, weighted_total
from gspo.rewards.builtin import KILLABLE, builtin
from gspo.rewards.calling import (
    TIMEOUT,
    Batch,
    Call,
    Outcome,
    Signature,
    check_options,
    ground_truths,
    signature_of,
)
from gspo.rewards.process import ProcessReward

MAX_ERRORS = 20
"""Distinct messages kept per wave."""
ENVIRONMENT = "environment"
"""Name of the reward that environments give."""
TRUTH_COLUMNS = ("ground_truth", "reward_model", "answer")


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One reward, ready to be called: in a process of its own, or by `call` in this one."""

    label: str
    weight: float
    timeout: float
    signature: Signature
    process: ProcessReward | None = None
    call: Call | None = None
    is_trusted: bool = False
    """A built-in that cannot hang: called directly."""

    def batch(self, batch: Batch) -> Batch:
        """The rows with the columns this reward reads. A missing column is the user's mistake, not a failed score."""
        available = list(batch.columns)
        columns = self.signature.columns(available)
        required = set(self.signature.required)
        if self.signature.kind == "verl":
            columns = [c for c in available if c in columns or c in TRUTH_COLUMNS]
            required -= {"ground_truth"} if ground_truths(batch.columns) is not None else set()
        missing = sorted(required - set(available))
        if missing:
            raise ValueError(
                f"reward {self.label!r} reads the column {missing[0]!r}, which the data does not have "
                f"(columns: {', '.join(available) or 'none'}): rename a column, or give the argument a default"
            )
        return batch.keeping(columns)


class Rewards:
    """The reward functions of a run. Final; holds worker processes, so close it or use it in a `with` block.

    Functions from files, and built-ins that can hang, run in processes that are killed at their timeout. A
    function passed as an object runs in a thread of this process: one that hangs is given up, not ended, and
    signal alarms do not work inside it.
    """

    def __init__(self, rewards: Sequence[RewardConfig | Callable], given: dict[str, float] | None = None):
        """`given`: name and weight of a score that comes from elsewhere: from environments, or with the data."""
        given = given or {}
        if not rewards and not given:
            raise ValueError("no reward is configured: set rewards to a built-in name or to path/to/file.py:function")
        self._parts: list[_Part] = []
        self._lock = threading.Lock()  # a worker answers one wave at a time
        try:
            for reward in rewards:
                self._parts.append(_part(reward) if isinstance(reward, RewardConfig) else _part_of_object(reward))
        except ValueError:
            self.close()
            raise
        self.names: tuple[str, ...] = (*given, *(part.label for part in self._parts))
        self.weights = np.array([*given.values(), *(part.weight for part in self._parts)])
        try:
            refuse_repeated(self.names)
        except ValueError:
            self.close()
            raise

    @property
    def take_time(self) -> bool:
        """Whether any of them is more than a built-in that answers at once."""
        return not all(part.is_trusted for part in self._parts)

    @property
    def by_row(self) -> bool:
        """Whether each of them scores a row without looking at others."""
        return all(part.signature.kind != "batch" for part in self._parts)

    def score(
        self,
        prompts: Sequence,
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        columns: dict[str, list],
        *given: Sequence[Outcome],
    ) -> Scored:
        """Scores B completions; `completions` are texts, `columns` the data's other columns as lists of B.

        `given` are the scores of B rows that came from elsewhere, for each name of them.
        """
        batch = _batch(prompts, completions, completion_ids, columns)
        batches = [part.batch(batch) for part in self._parts]
        with self._lock:
            outcomes = self._outcomes(batches)
        outcomes = [*(list(rows) for rows in given[: len(self.names) - len(self._parts)]), *outcomes]
        statuses = [[outcomes[k][b][0] for k in range(len(self.names))] for b in range(len(batch))]
        values = np.array([[outcome[1] for outcome in part] for part in outcomes], dtype=np.float64).T
        values = values.reshape(len(batch), len(self.names))
        return Scored(
            names=self.names,
            values=values,
            statuses=statuses,
            total=weighted_total(values, statuses, self.weights),
            errors=self._messages(outcomes, batch),
        )

    def _outcomes(self, batches: list[Batch]) -> list[list[Outcome]]:
        """[K][B]. Processes and async functions work while the plain ones run here, one after another."""
        found: list[list[Outcome]] = [[TIMEOUT] * len(batch) for batch in batches]
        indices = range(len(self._parts))
        asynchronous = [k for k in indices if self._parts[k].process is None and self._parts[k].signature.is_async]
        plain = [k for k in indices if self._parts[k].process is None and k not in asynchronous]
        running: list[tuple[threading.Thread, float | None]] = []
        for k in indices:
            process = self._parts[k].process
            if process is not None:

                def in_process(k=k, process=process):
                    found[k] = process.score(batches[k])

                running.append((_start(in_process), None))
        if asynchronous:

            async def together():
                calls = [self._parts[k].call.over_async(batches[k], self._parts[k].timeout) for k in asynchronous]
                for k, outcomes in zip(asynchronous, await asyncio.gather(*calls), strict=True):
                    found[k] = outcomes

            # The loop keeps the deadlines; the margin is for a coroutine that blocks the loop instead of awaiting.
            longest = max(self._parts[k].timeout for k in asynchronous)
            running.append((_start(lambda: asyncio.run(together())), longest + 1.0))
        for k in plain:
            found[k] = _plain(self._parts[k], batches[k])
        for thread, seconds in running:
            thread.join(seconds)
        return [list(outcomes) for outcomes in found]  # a thread given up on may still write into its own list

    def _messages(self, outcomes: list[list[Outcome]], batch: Batch) -> list[str]:
        seen: dict[tuple[str, str, str], str] = {}
        timeouts = {part.label: part.timeout for part in self._parts}
        for name, rows in zip(self.names, outcomes, strict=True):
            for (status, _, message), prompt in zip(rows, batch.prompts, strict=True):
                if status in ("ok", "none"):
                    continue
                said = message or f"no score within {timeouts[name]:g} s"
                seen.setdefault((name, status, said), f"{name}: {said}; prompt {_head(prompt)!r}")
        return list(seen.values())[:MAX_ERRORS]

    def close(self) -> None:
        """Ends the worker processes."""
        for part in self._parts:
            if part.process is not None:
                part.process.close()

    def __enter__(self) -> "Rewards":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def refuse_repeated(names: Sequence[str]) -> None:
    """Raises ValueError for two rewards of one name."""
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise ValueError(f"two rewards are called {repeated[0]!r}: give one of them another label")


def _part(config: RewardConfig) -> _Part:
    label = config.label or config.name or config.function.rpartition(":")[2]
    common = {"label": label, "weight": config.weight, "timeout": config.timeout}
    try:
        if config.name:
            factory = builtin(config.name)
            check_options(config.options, list(inspect.signature(factory).parameters))
            needed = [n for n, p in inspect.signature(factory).parameters.items() if p.default is p.empty]
            if missing := [name for name in needed if name not in config.options]:
                raise ValueError(f"the option {missing[0]!r} must be set in options")
            if config.name not in KILLABLE:
                function = factory(**config.options)
                call = Call(function, {}, signature_of(function, {}))
                return _Part(**common, signature=call.signature, call=call, is_trusted=True)
        spec = config.function or f"{inspect.getfile(builtin(config.name))}:{config.name}"
        request = {"spec": spec, "options": config.options, "is_factory": bool(config.name)}
        process = ProcessReward(request, timeout=config.timeout, workers=config.workers)
    except ValueError as error:
        raise ValueError(f"reward {label!r}: {error}") from None
    return _Part(**common, signature=process.signature, process=process)


def _part_of_object(function: Callable) -> _Part:
    if not callable(function):
        raise ValueError(f"{function!r:.60} is neither a RewardConfig nor a function")
    label = function.__name__ if inspect.isroutine(function) else type(function).__name__
    try:
        signature = signature_of(function, {})
    except ValueError as error:
        raise ValueError(f"reward {label!r}: {error}") from None
    timeout = RewardConfig(name="exact").timeout
    return _Part(label=label, weight=1.0, timeout=timeout, signature=signature, call=Call(function, {}, signature))


def _batch(prompts: Sequence, completions: Sequence, completion_ids: Sequence, columns: dict[str, Any]) -> Batch:
    count = len(prompts)
    for name, values in {"completions": completions, "completion_ids": completion_ids, **columns}.items():
        if len(values) != count:
            raise ValueError(f"{name} has {len(values)} entries for {count} prompts")
    return Batch(
        prompts=list(prompts),
        texts=list(completions),
        completions=[
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, completions, strict=True)
        ],
        completion_ids=[list(ids) for ids in completion_ids],
        columns={name: list(values) for name, values in columns.items()},
    )


def _start(run: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def _plain(part: _Part, batch: Batch) -> list[Outcome]:
    """A function in this process; past its deadline the rows it has not reached are timeouts."""
    outcomes: list[Outcome] = [TIMEOUT] * len(batch)

    def fill() -> None:
        for i, outcome in part.call.over(batch):
            outcomes[i] = outcome

    if part.is_trusted:
        fill()
    else:
        _start(fill).join(part.timeout)
    return list(outcomes)


def _head(prompt: Any) -> str:
    """The first 60 characters of a prompt, of its last message if it is messages."""
    text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"]) if prompt else ""
    return text if len(text) <= 60 else text[:57] + "..."
