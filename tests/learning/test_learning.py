"""It learns in seconds, with every objective; and it does not learn what the reward does not say."""

import json
import random
import typing
from pathlib import Path

import pytest

import gspo
from gspo.advantages import Advantage
from gspo.objectives import Objective

ROWS = [{"prompt": digit, "answer": digit, "value": 0.1} for digit in "0123456789"]
"""`value`, what a model right once in ten times gets, is read by A* alone."""
NAMES = [c.name for c in typing.get_args(typing.get_args(Objective)[0])]
FIELDS = {"dr_grpo": {"max_length": 2}}
SETTINGS = {
    "reinforce": {"updates_per_step": 1},
    "opo": {"updates_per_step": 1},
    "dr_grpo": {"advantage": "group_mean"},
}
ESTIMATORS = [c.name for c in typing.get_args(typing.get_args(Advantage)[0])]


def copies(completion: str, answer: str) -> float:
    """1 if the completion starts with the prompt's digit; a random model is right once in 17 times."""
    return float(completion.startswith(answer))


def is_digit(completion: str) -> float:
    return float(completion[:1].isdigit())


def run(folder: Path, reward=copies, **settings) -> list[dict]:
    """The metrics of a run of a model with 14 thousand parameters, without its clock."""
    tiny = {"hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 2, "intermediate_size": 64}
    common = {
        "tiny": tiny,
        "steps": 30,
        "prompts_per_step": 32,
        "group_size": 16,
        "updates_per_step": 2,
        "sampling": {"max_completion_tokens": 2},
        "optimizer": {"lr": 1e-2},
        "evaluation": {"every": 0},
        "overlap_rewards": False,  # a reward that looks at the batch must see all of it
        "checkpoints": {"every": 1000, "save_rollouts_every": 1000},
        "trackers": [],
    }
    gspo.train(data=ROWS, reward=reward, folder=str(folder), **{**common, **settings})
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    is_timing = lambda key: key.startswith("time/") or key in ("step_time", "tokens_per_second")  # noqa: E731
    return [{key: value for key, value in line.items() if not is_timing(key)} for line in lines]


def rewards(lines: list[dict]) -> list[float]:
    return [line["reward"] for line in lines if line["step"] > 0]


@pytest.mark.parametrize("name", NAMES)
def test_learns_to_copy(tmp_path, name):
    objective = {"name": name, **FIELDS.get(name, {})}
    seen = rewards(run(tmp_path / "run", objective=objective, **SETTINGS.get(name, {})))
    assert seen[0] < 0.2
    assert sum(seen[-3:]) / 3 > 0.9, seen


@pytest.mark.parametrize("name", ESTIMATORS)
def test_learns_to_copy_with_every_advantage(tmp_path, name):
    reward = (copies, is_digit) if name == "gdpo" else copies
    seen = rewards(run(tmp_path / "run", reward, objective="grpo", advantage=name, **SETTINGS.get(name, {})))
    scale = 2 if name == "gdpo" else 1
    assert seen[0] < 0.5 * scale
    assert sum(seen[-3:]) / 3 > 0.9 * scale, seen


@pytest.mark.parametrize("name", NAMES)
def test_does_not_learn_from_shuffled_rewards(tmp_path, name):
    """The same rewards, dealt to other rows of the batch: the copy stays at chance."""
    copied = []

    def shuffled(completions: list[str], answer: list[str]) -> list[float]:
        scores = [copies(*pair) for pair in zip(completions, answer, strict=True)]
        copied.append(sum(scores) / len(scores))
        random.Random(len(copied)).shuffle(scores)
        return scores

    objective = {"name": name, **FIELDS.get(name, {})}
    run(tmp_path / "run", reward=shuffled, objective=objective, **SETTINGS.get(name, {}))
    in_training = copied[1:31]  # the first call is the evaluation before training
    assert max(in_training) < 0.3, in_training


def test_a_seed_is_a_run(tmp_path):
    one, same, other = (
        run(tmp_path / name, steps=3, seed=seed) for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    assert one == same
    assert rewards(one) != rewards(other) and one[-1]["loss"] != other[-1]["loss"]
