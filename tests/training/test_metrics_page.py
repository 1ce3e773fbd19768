"""Every name that a run logs is explained on docs/metrics.md."""

import re
from pathlib import Path

import pytest
from runs import metrics, settings

from gspo.training.run import start

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
PATTERNS = {
    r"rewards/.+/(mean|std|failed)": "rewards/{name}/",
    r"clip_ratio/update_\d+": "clip_ratio/update_",
    r"environment/ended/.+": "environment/ended/{ending}",
    r"environment/digit": "environment/{fact}",
    r"pairs/.+": "pairs/{kind}",
    r"experts/changed/update_\d+": "experts/changed/update_",
    r"experts/changed/layer_\d+": "experts/changed/layer_",
}
FOLDER = Path(__file__).parents[1] / "resume"
GUESSING = ("environment.function", f"{FOLDER / 'guessing.py'}:Guessing")
RUNS = {
    "completions": (
        ("terms", [{"name": "reference_kl"}]),
        ("evaluation.temperature", 0.7),
        ("evaluation.greedy", True),
    ),
    "drafts": (("collector.drafts.number", 2), ("collector.drafts.template", "{draft} {prompt}")),
    "turns": (GUESSING,),
    "beside training": (("sampler", "process"), ("max_policy_lag", 1)),
    "experts": (("tiny.experts", 4), ("optimizer.lr", 0.01)),
    "forks": (GUESSING, ("collector.forks", True)),
    "given pairs": (("data.path", str(FOLDER / "pairs.jsonl")), ("rewards", []), ("objective", "dpo")),
    "pairs that were found": (
        (
            "phase",
            [
                {"name": "a", "steps": 1},
                {"name": "b", "steps": 1, "pairs_from": "a", "verifier": {"name": "rules", "correct_at": -0.5},
                 "settings": {"objective": "dpo"}},
            ],
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("run", RUNS)
def test_every_logged_name_is_documented(tmp_path, run):
    start(settings(tmp_path / "run", *RUNS[run], ("steps", 2)))
    page = PAGE.read_text()
    names = {name for line in metrics(tmp_path / "run") for name in line} - {"step"}
    generic = {next((text for p, text in PATTERNS.items() if re.fullmatch(p, name)), name) for name in names}
    assert [name for name in sorted(generic) if name not in page] == []
