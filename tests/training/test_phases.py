"""Schedules: which step is whose, what is refused, and that a phase on pairs samples nothing."""

import json

import pytest
from runs import metrics, settings

from gspo.phases import Phase, source_of, spans
from gspo.samplers.in_process import InProcess
from gspo.settings import phase_config, validate
from gspo.training.run import start

PAIRED = {
    "name": "align",
    "steps": 2,
    "pairs_from": "explore",
    "verifier": {"name": "rules", "correct_at": -0.5},
    "settings": {"objective": "dpo", "optimizer.lr": 1e-5},
}
EXPLORE = {"name": "explore", "steps": 2}


def test_every_step_is_in_one_span_and_pairs_come_from_the_newest_source():
    phases = (Phase(name="a", steps=3), Phase(name="b", steps=1), Phase(name="c", steps=2, pairs_from="a"))
    found = spans(phases, 14)
    assert [s for span in found for s in range(span.start, span.end)] == list(range(14))
    assert [(s.phase.name, s.round) for s in found] == [
        ("a", 0),
        ("b", 0),
        ("c", 0),
        ("a", 1),
        ("b", 1),
        ("c", 1),
        ("a", 2),
    ]
    assert source_of(found[5], found) is found[3] and found[-1].end - found[-1].start == 2


def test_a_phase_on_pairs_samples_nothing_and_learns(tmp_path, monkeypatch):
    asked = []
    sample = InProcess.sample_each
    monkeypatch.setattr(
        InProcess, "sample_each", lambda self, requests: (asked.append(self.version), sample(self, requests))[1]
    )
    run = start(
        settings(tmp_path / "run", ("phase", [EXPLORE, PAIRED]), ("evaluation.every", 0), ("evaluation.prompts", 0))
    )
    assert len(asked) == 2  # one wave for each of the two steps that sample; versions 0 and 2
    assert run.state.version == 8 and asked == [0, 2]
    lines = metrics(tmp_path / "run")
    assert ["preference/accuracy" in line for line in lines] == [False, False, False, True, True]
    assert ["reward" in line for line in lines] == [False, True, True, False, False]
    assert [line.get("lr") for line in lines[1:]] == [1e-3, 1e-3, 1e-5, 1e-5] and lines[-1]["grad_norm"] > 0
    found = json.loads((tmp_path / "run" / "pairs" / "step_000002.json").read_text())
    assert found["pairs"] and all(pair["chosen_ids"] != pair["rejected_ids"] for pair in found["pairs"])


def test_without_pairs_a_phase_is_left_out(tmp_path, capsys):
    nothing = {**PAIRED, "verifier": {"name": "rules", "correct_at": 9.0}, "kinds": ["accuracy"]}
    run = start(settings(tmp_path / "run", ("phase", [EXPLORE, nothing])))
    assert run.is_finished and run.state.version == 4
    assert "no pairs for phase align: its 2 steps are left out" in capsys.readouterr().out
    last = metrics(tmp_path / "run")[-1]
    assert last["step"] == 4 and "eval/accuracy" in last and run.summary["after"]
    assert (tmp_path / "run" / "checkpoints" / "step_000004").is_dir()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"phase": [EXPLORE, EXPLORE]}, "two phases are called 'explore'"),
        ({"phase": [PAIRED, EXPLORE]}, "pairs_from = 'explore' is no sampling phase before it"),
        ({"phase": [{**EXPLORE, "drop_solved": 0.5}]}, "drop_solved goes with pairs_from"),
        ({"phase": [{**EXPLORE, "settings": {"model": "x"}}]}, "settings.model belongs to the whole run"),
        ({"phase": [{**EXPLORE, "settings": {"optimizer.beta1": 0.5}}]}, "settings.optimizer.beta1 belongs"),
        ({"phase": [{**EXPLORE, "settings": {"optimizer": {"lr": 1}}}]}, "settings.optimizer belongs"),
        ({"phase": [EXPLORE, PAIRED], "environment": {"name": "calculator"}}, "cannot go with an environment"),
        ({"phase": [EXPLORE, PAIRED], "lora": {"rank": 2}}, 'set reference = "start"'),
        ({"phase": [EXPLORE, PAIRED], "checkpoints": {"save_rollouts_every": 2}}, "save_rollouts_every = 1"),
        ({"phase": [{**EXPLORE, "steps": 60}, PAIRED]}, "keep_rollouts to at least 62"),
        ({"phase": [{**EXPLORE, "steps": 0}]}, "it must be at least 1"),
        ({"phase": [{"name": "x", "steps": 1, "verifier": {"name": "rule"}}]}, "rules"),
    ],
)
def test_schedules_that_cannot_run(table, words):
    with pytest.raises(ValueError, match=words):
        validate(table)


def test_wrong_settings_of_a_phase_are_refused_before_the_first_step(tmp_path):
    bad = {**PAIRED, "settings": {"objective": "dpoo"}}
    with pytest.raises(ValueError, match=r"phase 'align'.*dpoo"):
        start(settings(tmp_path / "run", ("phase", [EXPLORE, bad])))
    assert not (tmp_path / "run").exists()
    config = validate({"phase": [EXPLORE, PAIRED]})
    assert phase_config(config, config.phase[1]).objective.name == "dpo" and config.objective.name == "gspo"
