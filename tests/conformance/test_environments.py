"""The laws of an environment, over every one that ships and one of every library that is adapted."""

from pathlib import Path

import pytest
from real_environments import REAL_FACTORIES

from gspo.cli.check_env import check_environment
from gspo.data import DataConfig, load_dataset
from gspo.envs.check import check_env
from gspo.envs.config import EnvironmentConfig
from gspo.envs.loading import BUILTIN, load_environment

GUESSING = f"{Path(__file__).parents[1] / 'resume' / 'guessing.py'}:Guessing"
OWN: dict[str, tuple[EnvironmentConfig, DataConfig, list[str]]] = {
    "calculator": (
        EnvironmentConfig(name="calculator"),
        DataConfig(task="calculator"),
        ["mul(3,4)", "add(12,1)", "mul(3)", "13"],
    ),
    "op_amp": (
        EnvironmentConfig(name="op_amp", options={"format": "digits", "turns": 3}),
        DataConfig(task="sizing/op_amp"),
        ["4455445", "5464354", "no"],
    ),
    "rc_ladder": (
        EnvironmentConfig(name="rc_ladder", options={"format": "digits", "improvement": True}),
        DataConfig(task="sizing/rc_ladder"),
        ["626911", "111111"],
    ),
    "black_box": (
        EnvironmentConfig(name="black_box", options={"format": "digits"}),
        DataConfig(task="black_box"),
        ["31625060", "00000000"],
    ),
    "a user's": (EnvironmentConfig(function=GUESSING), DataConfig(), ["1", "12"]),
}


def test_every_built_in_is_under_the_laws():
    assert {name for name in OWN if name != "a user's"} == set(BUILTIN)


def rows_of(data: DataConfig, count: int = 3):
    train = load_dataset(data, seed=0).train
    return [train[i] for i in range(count)]


@pytest.mark.parametrize("name", OWN)
def test_those_that_ship(name):
    settings, data, actions = OWN[name]
    report = check_env(load_environment(settings), rows_of(data), actions=actions)
    assert report.ok, str(report)


@pytest.mark.parametrize("name", REAL_FACTORIES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_those_of_other_libraries(name):
    factory, rows, actions = REAL_FACTORIES[name]()
    report = check_env(factory, rows[:2], actions=actions)
    assert report.ok, str(report)


def test_the_command_says_what_is_broken(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text(
        "from gspo.envs import Observation\n"
        "class Broken:\n"
        "    shared = []\n"
        "    def __init__(self, row, seed): pass\n"
        "    def start(self): return Observation()\n"
        "    def step(self, action):\n"
        "        self.shared.append(action.text)\n"
        "        return Observation(content=str(len(self.shared)), is_done=len(self.shared) > 2)\n"
        "    def close(self): pass\n"
    )
    report = check_environment(f"{file}:Broken", [], rows=1, max_turns=8, timeout=5.0, actions=["a"])
    broken = {finding.law for finding in report.findings if not finding.passed}
    assert "replay" in broken or "brothers" in broken
    assert not report.ok and "BROKEN" in str(report)
