"""It learns in seconds, with every objective; and it does not learn what the reward does not say."""

import json
import random
from pathlib import Path

import pytest

import gspo

ROWS = [{"prompt": digit, "answer": digit} for digit in "0123456789"]
OBJECTIVES = {
    "gspo": (gspo.GSPO(), "group_std"),
    "gspo_token": (gspo.GSPOToken(), "group_std"),
    "grpo": (gspo.GRPO(), "group_std"),
    "dr_grpo": (gspo.DrGRPO(max_length=2), "group_mean"),
    "dapo": (gspo.DAPO(), "group_std"),
}


def copies(completion: str, answer: str) -> float:
    """1 if the completion starts with the prompt's digit; a random model is right once in 17 times."""
    return float(completion.startswith(answer))


def run(folder: Path, reward=copies, **settings) -> list[dict]:
    """The metrics of a run of a model with 14 thousand parameters, without its clock."""
    tiny = {"hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 2, "intermediate_size": 64}
    common = {
        "tiny": tiny,
        "steps": 40,
        "prompts_per_step": 32,
        "group_size": 16,
        "updates_per_step": 2,
        "sampling": {"max_completion_tokens": 2},
        "optimizer": {"lr": 1e-2},
        "evaluation": {"every": 0},
        "checkpoints": {"every": 1000, "save_rollouts_every": 1000},
        "trackers": [],
    }
    gspo.train(data=ROWS, reward=reward, folder=str(folder), **{**common, **settings})
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    is_timing = lambda key: key.startswith("time/") or key in ("step_time", "tokens_per_second")  # noqa: E731
    return [{key: value for key, value in line.items() if not is_timing(key)} for line in lines]


def rewards(lines: list[dict]) -> list[float]:
    return [line["reward"] for line in lines if line["step"] > 0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_learns_to_copy(tmp_path, name):
    objective, advantage = OBJECTIVES[name]
    seen = rewards(run(tmp_path / "run", objective=objective, advantage=advantage))
    assert seen[0] < 0.2
    assert sum(seen[-3:]) / 3 > 0.9, seen


def test_does_not_learn_from_shuffled_rewards(tmp_path):
    """The same rewards, dealt to other rows of the batch: the copy stays at chance."""
    copied = []

    def shuffled(completions: list[str], answer: list[str]) -> list[float]:
        scores = [copies(*pair) for pair in zip(completions, answer, strict=True)]
        copied.append(sum(scores) / len(scores))
        random.Random(len(copied)).shuffle(scores)
        return scores

    run(tmp_path / "run", reward=shuffled)
    in_training = copied[1:41]  # the first call is the evaluation before training
    assert max(in_training) < 0.3, in_training


def test_a_seed_is_a_run(tmp_path):
    one, same, other = (
        run(tmp_path / name, steps=3, seed=seed) for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    assert one == same
    assert rewards(one) != rewards(other) and one[-1]["loss"] != other[-1]["loss"]
