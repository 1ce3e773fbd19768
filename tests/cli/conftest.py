"""A command as a function: exit code, standard output, and the one line of standard error."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from runs import SETTINGS

from gspo.cli.main import run
from gspo.settings import apply_overrides, write_toml


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The error, which must be one line of a user's mistake."""
        assert self.code == 2, (self.code, self.out, self.err)
        assert self.err.startswith("gspo: ") and self.err.endswith("\n") and self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err + self.out
        return self.err[len("gspo: ") : -1]


@pytest.fixture
def gspo(capsys, monkeypatch, tmp_path) -> Callable[..., Said]:
    """Runs `gspo WORDS...` in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CI", "1")
    monkeypatch.setenv("COLUMNS", "200")

    def command(*words: object) -> Said:
        capsys.readouterr()
        code = run([str(word) for word in words])
        return Said(code, *capsys.readouterr())

    return command


@pytest.fixture
def recipe(tmp_path) -> Callable[..., Path]:
    """A recipe file of a run that takes a second, with overrides."""

    def write(*pairs: tuple) -> Path:
        path = tmp_path / "small.toml"
        path.write_text(write_toml(apply_overrides({**SETTINGS, "steps": 2}, pairs)))
        return path

    return write
