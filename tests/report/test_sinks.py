"""Every sink takes a record with anything missing, and says in one line what to install."""

import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console as Terminal

from gspo.sinks import (
    Console,
    JsonlSink,
    Record,
    TensorBoardSink,
    TrackioSink,
    WandbSink,
    before_after_table,
    truncate_after,
)


def _terminal(**settings: object) -> Terminal:
    return Terminal(file=io.StringIO(), **{"width": 100, **settings})


def test_jsonl_writes_one_flushed_line_per_record(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.write(Record(step=1, metrics={"reward": 0.5, "kl": math.nan, "ratio": math.inf, "num_tokens": 7}))
    assert path.read_text() == '{"step": 1, "reward": 0.5, "kl": null, "ratio": null, "num_tokens": 7}\n'
    sink.close()
    again = JsonlSink(path)
    again.write(Record(step=2, metrics={}))
    again.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_truncate_removes_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 2, "rew')
    truncate_after(path, 2)
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n{"step": 2}\n'
    truncate_after(path, 2)
    assert path.read_text().count("\n") == 3
    truncate_after(tmp_path / "absent.jsonl", 2)
    assert not (tmp_path / "absent.jsonl").exists()


def test_truncate_refuses_a_file_that_is_not_a_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nhello\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2"):
        truncate_after(path, 1)
    assert "hello" in path.read_text()


def test_tensorboard_writes_scalars_and_the_sample(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path)
    sink.write(Record(step=1, metrics={"reward": 0.5, "kl": math.nan}, sample="1+1= -> <b>2</b>\n(1.0)"))
    sink.close()
    content = b"".join(path.read_bytes() for path in tmp_path.glob("events.*"))
    assert b"reward" in content and b"1+1=" in content


@pytest.mark.parametrize(
    ("module", "extra", "make"),
    [
        ("torch.utils.tensorboard", "tensorboard", TensorBoardSink),
        ("wandb", "wandb", WandbSink),
        ("trackio", "trackio", TrackioSink),
    ],
)
def test_missing_package_is_one_line_with_the_command(
    monkeypatch: pytest.MonkeyPatch, module: str, extra: str, make: Callable
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match="pip install") as error:
        make("somewhere")
    assert f"'gspo[{extra}]'" in str(error.value) and "\n" not in str(error.value)


def test_plain_console_prints_few_lines_and_every_evaluation() -> None:
    terminal = _terminal()
    console = Console(200, terminal=terminal)
    console.phase("cold start", 40)
    for _ in range(40):
        console.advance(loss=0.5)
    console.write(Record(step=0, metrics={"eval/accuracy": 0.1}))
    for step in range(1, 201):
        scores = {"eval/accuracy": 0.5} if step == 33 else {}
        console.write(Record(step=step, metrics={"reward": 0.25, "entropy": math.nan, **scores}))
    console.close()
    lines = terminal.file.getvalue().splitlines()
    steps = [line for line in lines if line.startswith("step")]
    assert steps[0] == "step   0/200  held-out 0.100"
    assert "reward 0.250" in steps[1] and "nan" not in steps[1]
    assert any(line.startswith("step  33/200") and "held-out 0.500" in line for line in steps)
    assert len(steps) == 23 and len([line for line in lines if line.startswith("cold start")]) == 11


def test_a_resumed_console_counts_from_where_it_starts() -> None:
    terminal = _terminal()
    console = Console(100, terminal=terminal)
    console.write(Record(step=50, metrics={"reward": 1.0}))
    assert terminal.file.getvalue() == "step  50/100  reward 1.000  left ?\n"


@pytest.mark.parametrize("width", [8, 30, 79, 200])
def test_live_console_survives_any_width_and_missing_metrics(width: int) -> None:
    terminal = _terminal(width=width, force_terminal=True, _environ={"TERM": "xterm"})
    console = Console(3, title="gspo [bold]", plain=False, terminal=terminal)
    console.advance(2)
    console.phase("cold start", 0)
    console.advance(loss=math.nan)
    console.write(Record(step=1, metrics={}))
    console.write(
        Record(step=2, metrics={"reward": 0.5, "eval/accuracy": math.nan}, sample="a\n\x1b[31mb -> [/x] 日本")
    )
    console.message("[note] two\nlines")
    console.write(Record(step=9, metrics={"reward": -1.0, "eval/accuracy": 0.5, "grad_norm": 1e9, "lr": 0.0}))
    console.close()
    console.close()
    assert "\x1b[31mb" not in terminal.file.getvalue()


def test_a_completion_cannot_steer_a_plain_terminal() -> None:
    terminal = _terminal()
    Console(1, plain=True, terminal=terminal).message("\x1b]0;title\x07[bold]x")
    assert terminal.file.getvalue() == "·]0;title·[bold]x\n"


def test_before_after_table_shows_what_is_known() -> None:
    terminal = _terminal()
    before = {"accuracy": 0.1, "reward": 0.2, "greedy_accuracy": None}
    terminal.print(before_after_table(before, {"accuracy": 0.9, "greedy_accuracy": 0.95}))
    text = terminal.file.getvalue()
    assert "+80.0 points" in text and "95.0%" in text and "length" not in text


def test_trackers_are_called_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []
    note = lambda name: lambda *args, **named: calls.append((name, args, named))  # noqa: E731
    run = SimpleNamespace(log=note("log"), finish=note("finish"))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **named: run))
    fake = SimpleNamespace(init=note("init"), log=note("log"), finish=note("finish"))
    monkeypatch.setitem(sys.modules, "trackio", fake)
    for sink in (WandbSink("project", run_id="a"), TrackioSink("project", name="b")):
        sink.write(Record(step=3, metrics={"reward": 0.5}, sample="x -> y"))
        sink.close()
    log = ("log", ({"reward": 0.5, "sample": "x -> y"},), {"step": 3})
    assert [call[0] for call in calls] == ["init", "log", "finish", "log", "finish"]
    assert calls.count(log) == 2
