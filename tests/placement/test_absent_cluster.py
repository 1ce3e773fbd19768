"""`--on auto` where no cluster is. By its name this file comes before those that start one, which Ray would find."""

import pytest
from test_placed_runs import gspo

pytestmark = pytest.mark.ray


def test_auto_says_how_to_start_one(tmp_path):
    done = gspo("train", "--on", "auto", "--folder", "run", folder=tmp_path)
    assert done.returncode == 2 and "ray start --head" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "run").exists()
