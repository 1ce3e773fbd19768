"""Every name that a run logs is explained on docs/metrics.md."""

import re
from pathlib import Path

from runs import metrics, settings

from gspo.training.run import start

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
PATTERNS = {r"rewards/.+/(mean|std|failed)": "rewards/{name}/", r"clip_ratio/update_\d+": "clip_ratio/update_"}


def test_every_logged_name_is_documented(tmp_path):
    overrides = (
        ("terms", [{"name": "reference_kl"}]),
        ("evaluation.temperature", 0.7),
        ("evaluation.greedy", True),
        ("steps", 2),
    )
    start(settings(tmp_path / "run", *overrides))
    page = PAGE.read_text()
    names = {name for line in metrics(tmp_path / "run") for name in line} - {"step"}
    generic = {next((text for p, text in PATTERNS.items() if re.fullmatch(p, name)), name) for name in names}
    assert [name for name in sorted(generic) if name not in page] == []
