"""The report builds from whole and broken run folders, and nothing in it can load or run anything."""

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gspo.report import build_report

_ATTACK = "</script><script>alert(1)</script>"


def _text(run: Path) -> str:
    return build_report(run).read_text("utf-8")


def _charts(text: str) -> list[str]:
    return [title.strip() for title in re.findall(r"<figure class=\"chart\"><figcaption><span>([^<]*)", text)]


def _rewrite(path: Path, **changes: object) -> None:
    """Set columns of a Parquet file to one value, or drop them (None)."""
    rows = [
        {name: value for name, value in (row | changes).items() if value is not None}
        for row in pq.read_table(path).to_pylist()
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def _edit_summary(run: Path, **changes: object) -> None:
    path = run / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class _Loads(HTMLParser):
    """Collects tags and everything a browser would fetch."""

    def __init__(self) -> None:
        self.scripts, self.fetched, self.tags = 0, [], set()
        HTMLParser.__init__(self)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.scripts += tag == "script"
        self.fetched += [value for name, value in attrs if name in ("src", "href", "data", "srcset", "action")]


def test_whole_run_has_every_part(run: Path) -> None:
    text = _text(run)
    assert '8.3 %<span class="arrow"> → </span><b>94.7 %</b>' in text
    assert "gspo, clip_low 3e-4, clip_high 4e-4" in text
    assert _charts(text) == [
        "Reward", "Held-out accuracy", "Clipped, by update", "Entropy", "Completion length", "Gradient norm",
        "Time", "Sampler mismatch", "Groups without signal", "Sequence ratio",
    ]  # fmt: skip
    assert "Ratio by update" in text and "clip_high" in text and "transformers 5.23.0" in text
    assert len(text) < 400_000


def test_nothing_is_loaded_from_anywhere(run: Path) -> None:
    text = _text(run)
    page = _Loads()
    page.feed(text)
    assert page.fetched == []
    assert "link" not in page.tags and "img" not in page.tags and "iframe" not in page.tags
    assert not re.search(r"https?://|@import|url\(", text)
    assert "default-src 'none'" in text


@pytest.mark.parametrize("place", ["completion", "prompt", "tokens", "summary", "settings"])
def test_text_of_a_model_is_never_markup(run: Path, place: str) -> None:
    page = _Loads()
    page.feed(_text(run))
    scripts = page.scripts
    rollout = sorted((run / "rollouts").glob("*"))[-1]
    if place == "tokens":
        _rewrite(rollout, tokens=[_ATTACK, "<eos>"])
    elif place == "summary":
        example = {"prompt": _ATTACK, "completion": _ATTACK, "answer": _ATTACK, "reward": 1.0}
        _edit_summary(run, model=_ATTACK, examples={"before": [example], "after": [example]})
    elif place == "settings":
        (run / "config.toml").write_text(f'"{_ATTACK}" = "{_ATTACK}"')
    else:
        _rewrite(rollout, **{place: _ATTACK, "tokens": None})
    text = _text(run)
    page = _Loads()
    page.feed(text)
    assert "alert(1)" in text and "<script>alert" not in text
    assert page.scripts == scripts


def test_embedded_completions_are_whole_and_cut_long_ones(run: Path) -> None:
    rollout = sorted((run / "rollouts").glob("*"))[-1]
    _rewrite(rollout, tokens=["é\n"] * 500, logprobs=[-1.5] * 500, old_logprobs=[-1.0] * 500)
    data = json.loads(re.search(r'id="rollouts">(.*?)</script>', _text(run))[1])
    assert [step["step"] for step in data["steps"]] == [1, 3, 6]
    rows = data["steps"][-1]["rows"]
    assert len(rows) == 16 and {row["length"] for row in rows} == {500}
    assert rows[0]["cut"] == 500 - len(rows[0]["tokens"]) and set(rows[0]["tokens"]) == {"é\n"}
    assert set(rows[0]["log_ratio"]) == {-0.5} and data["scale"] == 0.5


@pytest.mark.parametrize("missing", ["config.toml", "metrics.jsonl", "summary.json", "rollouts", "ledger"])
def test_any_one_piece_may_be_missing(run: Path, missing: str) -> None:
    shutil.rmtree(run / missing) if (run / missing).is_dir() else (run / missing).unlink()
    text = _text(run)
    assert "<h1>" in text
    assert "gspo, clip_low 3e-4, clip_high 4e-4" in text
    assert ("unfinished run" in text) == (missing == "summary.json")
    assert ("Importance ratios" in text) == (missing != "ledger")


def test_without_evaluations_the_rewards_are_the_headline(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 0.25}\n{"step": 2, "reward": 0.5}\n')
    text = _text(tmp_path)
    assert '0.25<span class="arrow"> → </span><b>0.5</b>' in text and "training reward" in text


@pytest.mark.parametrize(
    "line", [{"reward": 0.5, "time/update": 1.0, "clip_ratio/region_mean": 0.1}, {"reward": None, "entropy": None}]
)
def test_single_step_and_steps_without_numbers(tmp_path: Path, line: dict) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, **line}) + '\n{"step": 2, "rew')
    text = _text(tmp_path)
    assert "metrics.jsonl line 2" in text and "NaN" not in text


def test_missing_values_are_gaps_not_numbers(run: Path) -> None:
    for path in (run / "ledger").glob("*"):
        _rewrite(path, gradient_share=math.nan, log_ratio=math.nan if "1" in path.stem else 1e6)
    for path in (run / "rollouts").glob("*"):
        _rewrite(path, reward=math.nan, logprobs=[math.nan], answer=None, advantage=None)
    data = re.search(r'id="rollouts">(.*?)</script>', _text(run))[1]
    assert "NaN" not in data and "Infinity" not in data
    row = json.loads(data)["steps"][0]["rows"][0]
    assert row["reward"] is None and row["fate"]["ratio"] is None


def test_token_level_ledger_counts_tokens(run: Path) -> None:
    for path in (run / "ledger").glob("*"):
        _rewrite(path, clipped_low=1, clipped_high=0, length=4)
    text = _text(run)
    assert '"clipped_tokens":1' in text
    assert "share of tokens" in text and "<td>25.0 %</td><td>0.0 %</td>" in text


def test_a_step_without_clip_counts_among_token_level_ones(run: Path) -> None:
    """All its rows had advantage 0 and skipped the network, so the writer did not know the level."""
    first, second = sorted((run / "ledger").glob("*.parquet"))[:2]
    _rewrite(first, clipped_low=2, clipped_high=1)
    _rewrite(second, skipped=True, gradient_share=0.0)
    assert "clipped_low" not in pq.read_table(second).column_names
    assert "<html" in _text(run)


def test_a_file_being_written_is_named_and_left_out(run: Path) -> None:
    sorted((run / "ledger").glob("*"))[-1].write_bytes(b"PAR1 half")
    assert "ledger/step_000006.parquet" in _text(run)


def test_long_runs_stay_small(tmp_path: Path) -> None:
    lines = ({"step": step, "reward": step / 5000, "entropy": 1.0} for step in range(1, 5001))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = _text(tmp_path)
    assert "mean of 17 steps" in text and len(text) < 200_000


def test_empty_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run in .*metrics\.jsonl") as error:
        build_report(tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "report.html").exists()


def test_a_wrappers_base_is_named_and_its_bounds_are_drawn(run: Path) -> None:
    from gspo.report.data import read_run
    from gspo.report.panels import clip_bounds

    base = {"name": "gspo", "clip_low": 3e-4, "clip_high": 5e-4}
    for objective, bounds in (
        ({"name": "dual_clip", "base": base, "c": 3.0}, [3e-4, 5e-4]),
        (base, [3e-4, 5e-4]),
        ({"name": "dppo", "clip_low": 0.15, "clip_high": 0.15}, []),
        ({"name": "agro", "beta": 0.1}, []),
    ):
        _edit_summary(run, objective=objective)
        assert clip_bounds(read_run(run)) == bounds
        text = _text(run)
        assert objective["name"] in text
    assert "no bounds on a ratio" in _text(run)
    _edit_summary(run, objective={"name": "dual_clip", "base": base, "c": 3.0})
    assert "no bounds on a ratio" not in _text(run)
    assert "dual_clip, base (gspo, clip_low 3e-4, clip_high 5e-4), c 3" in _text(run)
