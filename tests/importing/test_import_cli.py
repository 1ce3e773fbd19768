"""`gspo import` as a command: report, recipe, JSON, and mistakes in one line."""

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from gspo.cli import verbs
from gspo.cli.main import run
from gspo.importing import import_trl
from gspo.importing.report import Settings, every_steps, whole_groups
from gspo.settings import load_config, validate

DATA = Path(__file__).parent / "data"
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verbs, "TERMINAL", Console(width=160))

    def call(*words):
        code = run(["import", *map(str, words)])
        return code, *capsys.readouterr()

    return call


def test_report_and_recipe_on_standard_output(command):
    code, out, err = command("trl", DATA / "trl_gspo.yaml")
    assert code == 0 and err == ""
    report, recipe = out.split("# Imported from TRL 1.16 by gspo import.")
    assert "TRL 1.16: " in report and "epsilon = 0.0003" in report and "their defaults" in report
    assert "# different: bf16 = null" in recipe and 'name = "gspo"' in recipe


def test_out_writes_a_recipe_that_loads_and_never_overwrites(command):
    code, out, _ = command("verl", DATA / "verl_gspo.sh", "--out", "mine.toml", "--prompts", "7473")
    assert code == 0 and "recipe: mine.toml" in out and "[objective]" not in out
    assert load_config(Path("mine.toml")).steps == 30 * (7473 // 512)
    code, out, err = command("verl", DATA / "verl_gspo.sh", "--out", "mine.toml")
    assert code == 2 and err == "gspo: --out mine.toml exists; choose another file\n"


def test_json_is_one_object(command):
    code, out, _ = command("trl", DATA / "trl_gspo.yaml", "--beta", "0.1", "--json", "--world-size", 2)
    facts = json.loads(out)
    assert code == 0 and set(facts) == {"library", "lines", "notes", "recipe", "toml"}
    fields = {"key", "theirs", "verdict", "ours", "why", "factor", "is_given"}
    assert all(set(line) == fields for line in facts["lines"])
    assert {line["verdict"] for line in facts["lines"]} <= {
        "equal", "equal up to a scale", "different", "no counterpart",
    }  # fmt: skip
    assert validate(facts["recipe"]).prompts_per_step == 8 and "processes: 2" in facts["notes"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "import from which library? trl or verl"),
        (("trll", "x"), "did you mean 'trl'?"),
        (("trl",), "gspo import trl: give a YAML or JSON file, or --flag value"),
        (("verl",), "gspo import verl: give a.b=value"),
        (("trl", "--epsilom", "1"), "did you mean 'epsilon'?"),
        (("trl", "train.py"), "Python configs are not run"),
        (("trl", "none.yaml"), "file 'none.yaml' does not exist"),
        (("verl", "a.b=1", "--world-size", "2"), "--world-size is for trl"),
        (("trl", "--beta", "1", "--prompts", "x"), "invalid int value"),
    ],
)
def test_mistakes_are_one_line(command, words, message):
    code, out, err = command(*words)
    assert code == 2 and err.startswith("gspo: ") and err.count("\n") == 1 and message in err
    assert out == ""


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "a: [1", "not valid YAML"),
        ("a.json", "{", "not valid JSON"),
        ("a.yml", "- 1\n", "holds no table"),
    ],
)
def test_files_that_cannot_be_read(command, name, text, message):
    Path(name).write_text(text)
    code, _, err = command("trl", name)
    assert code == 2 and err.count("\n") == 1 and message in err


def test_brackets_in_settings_are_no_markup(command):
    _, out, _ = command("verl", DATA / "verl_gspo.sh")
    assert "['console', 'wandb']" in out


def test_small_parts():
    assert [whole_groups(8, n) for n in (1, 2, 3, 5, 8, 9)] == [1, 2, 2, 4, 8, 8]
    assert every_steps(0.1, 4, "x").verdict == "different" and every_steps(True, 1, "x").verdict == "different"
    assert (every_steps(10, 4, "x").sets["x"], every_steps(10, 4, "x").verdict) == (2, "different")
    settings = Settings(given={"a": True}, defaults={"b": "x"})
    for call in (lambda: settings.number("a"), lambda: settings.is_on("b"), lambda: settings.choice("b", ("y", "z"))):
        with pytest.raises(ValueError, match="is"):
            call()


def test_every_reason_is_given():
    """Whatever is not plainly equal says why."""
    result = import_trl(["--importance_sampling_level", "sequence", "--steps_per_generation", "4", "--beta", "0.1"])
    assert all(line.why for line in result.lines if line.verdict != "equal")


def test_the_page_shows_what_the_command_prints():
    """Each line of the example in docs/import.md is a line of the report."""
    page = (DOCS / "import.md").read_text()
    block = re.search(r"```text\n(.*?)```", page, re.S)
    words = ["--importance_sampling_level", "sequence", "--steps_per_generation", "4"]
    said = {line.setting: line for line in import_trl(words).lines}
    rows = [row.split(" | ") for row in block.group(1).strip().splitlines()]
    for setting, verdict, ours, why in rows:
        found = said[setting.strip()]
        assert (verdict.strip(), ours.strip()) == (found.verdict, found.ours)
        factor = f"; theirs = ours x {found.factor}" if found.factor else ""
        assert why.strip() == found.why + factor
