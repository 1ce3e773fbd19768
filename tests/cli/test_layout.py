"""`gspo plan` says which layout a run takes, and what it saves."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from gspo.cli.layout import layout_table
from gspo.config import RunConfig
from gspo.models import TinyConfig
from gspo.sampling import Sampling


def config(**changes) -> RunConfig:
    base = RunConfig(prompts_per_step=8, updates_per_step=4, group_size=4, sampling=Sampling(max_completion_tokens=6))
    return replace(base, **{"tiny": TinyConfig(hidden_size=32, layers=2, heads=2, kv_heads=2), **changes})


def shown(settings: RunConfig) -> str:
    console = Console(width=120, file=StringIO())
    console.print(layout_table(settings))
    return console.file.getvalue()


def chosen(text: str) -> list[str]:
    return [line.split("│")[1].strip() for line in text.splitlines() if "chosen" in line or "set" in line]


def test_auto_says_what_it_takes_and_what_goes_forward():
    text = shown(config())
    assert "one update: 2 prompts of 6 tokens, x 4 completions of 6" in text
    (name,) = chosen(text)
    assert name.startswith("shared_prefix")
    cells = next(line for line in text.splitlines() if "chosen" in line).split("│")
    assert int(cells[2]) == 2 * (6 + 4 * 5)  # each prompt once, and all but the last token of its completions
    padded = next(line for line in text.splitlines() if "padded" in line and "│" in line).split("│")
    assert int(padded[2]) == 2 * 4 * (6 + 5) and float(padded[4]) == 1.0


@pytest.mark.parametrize("layout", ["padded", "packed", "shared_prefix"])
def test_a_layout_that_is_set_is_marked_as_set(layout):
    (name,) = chosen(shown(config(layout=layout)))
    assert name.split(",")[0] == layout


def test_costs_of_switches_are_said():
    assert "before the first update" in shown(config(compile=True))
    assert "a third more" in shown(config(checkpoint_activations=True))


def test_models_that_cannot_share_have_padded_rows_only(monkeypatch):
    import gspo.cli.layout as module

    monkeypatch.setattr(module, "known_refusal", lambda found: "its experts have a capacity, which counts tokens")
    text = shown(config())
    assert chosen(text) == ["padded"] and "only padded rows: its experts" in text


def test_without_the_models_configuration_there_is_no_table(tmp_path):
    assert layout_table(config(model=str(tmp_path / "nothing"))) is None
