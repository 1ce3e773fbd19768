"""Datasets of reasoning-gym as one-turn environments: a question, an answer, the dataset's own score.

    https://github.com/open-thought/reasoning-gym (0.1.25): create_dataset(name, ...) -> rows {question, answer,
    metadata}; score_answer(answer, entry) -> 0..1

The same as the task `reasoning_gym/NAME` with its reward, for runs that speak to environments. That reward scores in a
process that can be killed; here a scorer that hangs costs its thread and ends the rollout as "env_timeout".
"""

from typing import Any, Protocol

from gspo.envs.base import Action, EnvFactory, Observation
from gspo.tasks.base import Row


class Dataset(Protocol):
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    def score_answer(self, answer: str, entry: dict[str, Any]) -> float: ...


class QuestionEnv:
    """One question. It keeps no state: what an answer would bring can be asked without giving it."""

    def __init__(self, dataset: Dataset, row: Row) -> None:
        self._dataset, self._row = dataset, row
        self._entry = row["entry"] if "entry" in row else dataset[row["index"]]

    def start(self) -> Observation:
        return Observation(content="" if self._row.get("prompt") else self._entry["question"])

    def step(self, action: Action) -> Observation:
        return self.evaluate(action)

    def evaluate(self, action: Action) -> Observation:
        reward = float(self._dataset.score_answer(answer=action.text.strip(), entry=self._entry))
        return Observation(reward=reward, is_done=True)

    def close(self) -> None: ...


def reasoning_gym_env(dataset: Dataset) -> EnvFactory:
    """One-turn environments of a dataset. A row names its question by "entry", or by its "index" in the dataset."""

    def factory(row: Row, seed: int) -> QuestionEnv:
        return QuestionEnv(dataset, row)

    return factory


def reasoning_gym_rows(dataset: Any, count: int) -> list[Row]:
    """Rows of the first questions, as conversations."""
    entries = [dataset[i] for i in range(count)]
    return [
        {"prompt": [{"role": "user", "content": entry["question"]}], "entry": entry, "answer": entry["answer"]}
        for entry in entries
    ]
