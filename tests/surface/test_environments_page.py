"""docs/environments.md: its code runs, its settings parse."""

import re
import tomllib
from pathlib import Path

import pytest

from gspo.envs.adapters import adapt
from gspo.envs.check import check_env
from gspo.rewards import load_function
from gspo.settings import validate

PAGE = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TOML = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


def test_the_first_environment_keeps_the_protocol(tmp_path):
    (tmp_path / "guess.py").write_text(PYTHON[0])
    factory = adapt(load_function(f"{tmp_path / 'guess.py'}:Guess"))
    report = check_env(factory, [{"prompt": [{"role": "user", "content": "-"}]}], actions=["50", "75"], max_turns=200)
    broken = [finding.law for finding in report.findings if not finding.passed]
    assert broken == ["ends"]  # whoever never finds the number is ended by max_turns


def test_the_tools_make_an_environment():
    namespace: dict = {}
    exec(PYTHON[1], namespace)
    report = check_env(namespace["environment"], [{"prompt": "1+2=", "answer": "3"}], actions=["add(1,2)", "3"])
    assert report.ok, str(report)


@pytest.mark.parametrize("text", TOML)
def test_settings_are_settings(text):
    validate(tomllib.loads(text))
