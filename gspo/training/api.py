"""`gspo.train(...)`: a run from Python, with objects where a recipe has names."""

import dataclasses
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gspo.advantages import Advantage
from gspo.advantages.base import AdvantageEstimator
from gspo.data import Dataset, Row, hold_out
from gspo.envs.base import EnvFactory
from gspo.objectives import Objective, Term
from gspo.objectives.base import UnitObjective
from gspo.rewards import RewardConfig
from gspo.settings import validate
from gspo.tasks.base import answer_equals
from gspo.training.parts import Given
from gspo.training.run import Run, start

FILES = (".jsonl", ".json", ".parquet", ".csv")


def train(
    model: Any = "tiny",
    data: str | dict[str, Any] | Sequence[Row] | Dataset = "addition",
    reward: str | RewardConfig | Callable | Sequence[str | RewardConfig | Callable] = (),
    objective: str | UnitObjective = "gspo",
    *,
    tokenizer: Any = None,
    environment: str | dict[str, Any] | EnvFactory = "",
    terms: Sequence[UnitObjective] = (),
    advantage: str | AdvantageEstimator = "group_std",
    **settings: Any,
) -> Run:
    """Train and return the run: `.model`, `.tokenizer`, `.summary`, `.folder`.

    model: a name as in a recipe, or a transformers model with `tokenizer`. data: a task, a file, rows with a
    "prompt" (a tenth, at most 200, is held out), a Dataset, or a recipe's table. reward: built-in names,
    "file.py:function", RewardConfigs, or functions of TRL's signature; () takes the task's own. environment: a
    built-in's name, "file.py:factory", a recipe's table, or a factory (or another library's environment, as
    `gspo.envs.adapt` takes them). objective, terms, advantage: names, tables as in a recipe, or objects. All other
    settings are those of a recipe: `steps=50, sampling={"temperature": 0.7}`.
    Raises ValueError for a mistake.

    Example::

        run = gspo.train("Qwen/Qwen3-0.6B", data="train.jsonl", reward=my_reward, steps=100, optimizer={"lr": 1e-6})
    """
    if not isinstance(model, str) and tokenizer is None:
        raise ValueError("a model object needs its tokenizer: gspo.train(model, tokenizer=...)")
    rewards = _rewards(reward)
    if rewards and "rewards" in settings:
        raise ValueError("give reward= or rewards=, not both")
    has_functions = any(not isinstance(item, RewardConfig) for item in rewards)
    given = Given(
        model=None if isinstance(model, str) else model,
        tokenizer=tokenizer,
        data=_dataset(data),
        rewards=rewards if has_functions else (),
        environment=None if isinstance(environment, str | dict) else _adapted(environment),
        objective=None if _is_setting(objective, Objective) else objective,
        terms=tuple(term for term in terms if not _is_setting(term, Term)),
        advantage=None if _is_setting(advantage, Advantage) else advantage,
    )
    # What a recipe can say goes into the settings, so that the run's config.toml says it too.
    table: dict[str, Any] = {
        "name": "run",
        **settings,
        "model": model if isinstance(model, str) else type(model).__name__,
        "terms": [term for term in terms if _is_setting(term, Term)],
    }
    if isinstance(environment, str) and environment:
        table["environment"] = {"function" if ":" in environment else "name": environment}
    elif isinstance(environment, dict):
        table["environment"] = environment
    if rewards and not has_functions:
        table["rewards"] = rewards
    if given.objective is None:
        table["objective"] = objective
    if given.advantage is None:
        table["advantage"] = advantage
    if isinstance(data, str):
        is_path = data.endswith(FILES) or Path(data).exists()
        table["data"] = {"path" if is_path else "task": data}
    elif isinstance(data, dict):
        table["data"] = data
    return start(validate({key: _plain(value) for key, value in table.items()}, "gspo.train"), given)


def _adapted(environment: Any) -> EnvFactory:
    from gspo.envs.adapters import adapt

    return adapt(environment)


def _is_setting(value: Any, union: Any) -> bool:
    """Whether a recipe can name it."""
    return isinstance(value, (str, dict, *typing.get_args(typing.get_args(union)[0])))


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


def _dataset(data: str | dict[str, Any] | Sequence[Row] | Dataset) -> Dataset | None:
    if isinstance(data, str | dict):
        return None
    if isinstance(data, Dataset):
        return data
    rows = list(data)
    bad = [i for i, row in enumerate(rows) if not isinstance(row, dict) or "prompt" not in row]
    if bad or not rows:
        raise ValueError(f"data row {bad[0] if bad else 0} has no 'prompt'; rows are dicts with a prompt and columns")
    kept, held_out = hold_out(rows, 200)
    has_answers = all("answer" in row for row in rows)
    return Dataset(
        name="python",
        train=kept,
        held_out=held_out,
        rewards=(),
        is_correct=answer_equals if has_answers else None,
        reading=f"{len(rows)} rows given from Python, {len(held_out)} prompts of them held out",
    )


def _rewards(reward: str | RewardConfig | Callable | Sequence[str | RewardConfig | Callable]) -> tuple[Any, ...]:
    given = [reward] if isinstance(reward, str | RewardConfig) or callable(reward) else list(reward)
    named = lambda text: RewardConfig(function=text) if ":" in text else RewardConfig(name=text)  # noqa: E731
    return tuple(named(item) if isinstance(item, str) else item for item in given)
