from pathlib import Path

import pytest
from make_run import make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A small made-up run folder with every file of the contract."""
    return make_run(tmp_path / "run", steps=6, every=3)
