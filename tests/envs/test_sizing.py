import math
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gspo.envs import Action, Env, Evaluates, Forks, Scores
from gspo.envs.check import check_env
from gspo.envs.circuit import Circuit, Counting, Metric, Parameter, SimulationError, Spec
from gspo.envs.circuits import CIRCUITS, STOP, op_amp, rc_ladder, simulate_op_amp, simulate_rc_ladder
from gspo.envs.proposals import prompt_of, read, written
from gspo.envs.sizing import Sizing, SpecDraws
from gspo.models import TinyConfig, character_tokenizer
from gspo.tasks.sizing import sizing

OP_AMP, LADDER = op_amp(), rc_ladder()
ROW = {"prompt": "7057604447=", "specs": "gain>=70 gbw>=5 pm>=60 pw<=0.8 sr>=5"}
levels_of_op_amp = st.lists(st.integers(0, 9), min_size=7, max_size=7)


def values(circuit, levels):
    return {p.name: p.values[level] for p, level in zip(circuit.parameters, levels, strict=True)}


def play(environment, *texts):
    environment.start()
    return [environment.step(Action(text=text, turn=turn)) for turn, text in enumerate(texts)]


# ---- the op-amp's equations against the nodes they come from


def nodal_gain(p, s):
    """V_out over a differential input at complex frequency s: three nodal equations with the same small signals."""
    w1, w3, w6, length = (p[name] * 1e-6 for name in ("w1", "w3", "w6", "l"))
    i5, i7 = p["i5"] * 1e-6, p["i7"] * 1e-6
    gm = [min(math.sqrt(2 * k * w / length * i), i / 0.038775) for k, w, i in GM(w1, w3, w6, i5, i7)]
    gate = lambda w: 2 / 3 * w * length * 24.7e-4 + 220e-12 * w  # noqa: E731
    g1, g2 = 0.09e-6 / length * i5 / 2, 0.09e-6 / length * i7
    cc = p["cc"] * 1e-12 + 220e-12 * w6
    # Nodes: mirror, first stage's output, output. Half the input drives the mirror, half the first output.
    nodes = np.array(
        [
            [gm[1] + s * 2 * gate(w3), 0, 0],
            [gm[1], g1 + s * (gate(w6) + cc), -s * cc],
            [0, gm[2] - s * cc, g2 + s * (10e-12 + cc)],
        ]
    )
    return np.linalg.solve(nodes, np.array([-gm[0] / 2, gm[0] / 2, 0]))[2]


def GM(w1, w3, w6, i5, i7):
    return (110e-6, w1, i5 / 2), (50e-6, w3, i5 / 2), (50e-6, w6, i7)


@given(levels_of_op_amp)
def test_the_op_amp_is_its_nodal_equations(levels):
    p = values(OP_AMP, levels)
    try:
        metrics = simulate_op_amp(p)
    except SimulationError as error:
        assert "overdrive" in str(error)
        return
    assert metrics["gain"] == pytest.approx(20 * math.log10(abs(nodal_gain(p, 0))), abs=1e-9)
    crossing = 2j * math.pi * metrics["gbw"] * 1e6
    assert abs(nodal_gain(p, crossing)) == pytest.approx(1, rel=1e-6)
    # The phase by unwrapping along the frequency axis, and no crossing before this one.
    path = np.array([nodal_gain(p, crossing * f) for f in (0, *np.geomspace(1e-7, 1, 600))])
    phase = np.degrees(np.unwrap(np.angle(path)))
    turned = phase[-1] - phase[0]
    assert metrics["pm"] == pytest.approx(180 + turned, abs=1e-4)
    assert (np.abs(path[:-1]) > 1).all()


def test_a_sizing_worked_by_hand():
    """The textbook's design for 5 MHz at 10 pF (Allen & Holberg, example 6.3-1), with (3) to (8) by hand."""
    metrics = simulate_op_amp({"w1": 3, "w3": 15, "w6": 94, "l": 1, "i5": 30, "i7": 95, "cc": 3})
    gm1, gm6 = math.sqrt(110 * 3 * 30), math.sqrt(2 * 50 * 94 * 95)  # uS: 99.5 and 945
    assert metrics["gain"] == pytest.approx(20 * math.log10(2 * gm1 * gm6 / (30 * 95 * 0.09**2)), abs=1e-9)
    assert metrics["gbw"] == pytest.approx(gm1 / (2 * math.pi * 3.02), rel=0.08)  # the poles take a little of it
    assert 60 < metrics["pm"] < 70
    assert metrics["pw"] == pytest.approx(5 * 0.125)
    assert metrics["sr"] == pytest.approx(95 / 13.0207, rel=1e-4)  # the output stage is the slower


def test_a_transistor_without_headroom_fails():
    with pytest.raises(SimulationError, match=r"m6 needs an overdrive of 2\.8"):
        simulate_op_amp({"w1": 10, "w3": 10, "w6": 5, "l": 1, "i5": 30, "i7": 1000, "cc": 3})


def test_weak_inversion_limits_the_transconductance():
    wide = {"w1": 100, "w3": 10, "w6": 100, "l": 0.8, "i5": 5, "i7": 100, "cc": 20}
    assert simulate_op_amp(wide)["gbw"] == pytest.approx(simulate_op_amp({**wide, "w1": 90})["gbw"], rel=1e-9)


# ---- the ladder's equations against the nodes they come from


def nodal_output(rs, cs, frequency):
    s, n = 2j * math.pi * frequency, len(rs)
    g = [1 / r for r in rs] + [0.0]
    matrix = np.zeros((n, n), dtype=complex)
    for i in range(n):
        matrix[i, i] = g[i] + g[i + 1] + s * cs[i]
        if i + 1 < n:
            matrix[i, i + 1] = matrix[i + 1, i] = -g[i + 1]
    return np.linalg.solve(matrix, np.array([g[0], *[0.0] * (n - 1)]))[-1]


@given(st.lists(st.tuples(st.floats(1, 50), st.floats(10, 500)), min_size=1, max_size=9))
def test_the_ladder_is_its_nodal_equations(stages):
    rs, cs = [r * 1e3 for r, _ in stages], [c * 1e-12 for _, c in stages]
    named = {f"r{i}": r for i, (r, _) in enumerate(stages, 1)} | {f"c{i}": c for i, (_, c) in enumerate(stages, 1)}
    metrics = simulate_rc_ladder(named)
    assert abs(nodal_output(rs, cs, metrics["fc"] * 1e3)) == pytest.approx(1 / math.sqrt(2), rel=1e-8)
    assert metrics["at"] == pytest.approx(-20 * math.log10(abs(nodal_output(rs, cs, STOP))), abs=1e-6)
    assert metrics["rt"] == pytest.approx(sum(rs) / 1e3) and metrics["ct"] == pytest.approx(sum(cs) * 1e12)


def test_one_stage_has_the_cutoff_of_the_first_lesson():
    assert simulate_rc_ladder({"r1": 10, "c1": 100})["fc"] == pytest.approx(1e3 / (2 * math.pi), rel=1e-9)


@pytest.mark.skipif(shutil.which("ngspice") is None, reason="ngspice is not installed")
def test_the_ladder_is_what_ngspice_measures(tmp_path):
    netlist = f"""ladder
v1 n0 0 ac 1
r1 n0 n1 2k
c1 n1 0 300p
r2 n1 n2 9k
c2 n2 0 40p
.control
ac dec 200 100 1e8
meas ac cutoff when vdb(n2)=-3.010299957 fall=1
meas ac stop find vdb(n2) at={STOP}
.endc
.end
"""
    (tmp_path / "ladder.cir").write_text(netlist)
    done = subprocess.run(["ngspice", "-b", "ladder.cir"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    found = {name: float(value) for name, value in re.findall(r"^(\w+)\s*=\s*(\S+)", done.stdout, re.MULTILINE)}
    ours = simulate_rc_ladder({"r1": 2, "r2": 9, "c1": 300, "c2": 40})
    assert ours["fc"] == pytest.approx(found["cutoff"] / 1e3, rel=1e-4)
    assert ours["at"] == pytest.approx(-found["stop"], abs=1e-3)


# ---- codes, specs, reward


@given(st.sampled_from([*OP_AMP.metrics, *LADDER.metrics]), st.integers(1, 98), st.floats(-200, 1e4))
def test_a_code_meets_a_target_where_the_metric_does(metric, level, value):
    spec = Spec(metric=metric, target=metric.grid[level])
    assert metric.target_code(spec.target) == level
    code = metric.code(value)
    assert spec.is_met(value) == (code >= level if metric.direction == ">=" else code <= level)
    assert spec.is_met(metric.grid[level]) and spec.part(metric.grid[level]) == 1.0


@given(st.sampled_from([0.5, 69.9, 70.4]), st.floats(0, 100))
def test_a_target_off_the_grid_is_written_stricter(target, value):
    metric = OP_AMP.metrics[0]
    if metric.code(value) >= metric.target_code(target):
        assert Spec(metric=metric, target=target).is_met(value)


def test_the_reward_by_hand():
    """gain 63 of 70 misses a tenth, pw 1.2 of 0.8 a half; gbw and sr are met, pm -20 of 60 misses all."""
    circuit = replace(OP_AMP, simulator=lambda p: {"gain": 63, "gbw": 9, "pm": -20, "pw": 1.2, "sr": 5})
    proposal = written(circuit.parameters, [5] * 7, "text")
    plain = Sizing(circuit=circuit).assess(circuit.specs(ROW["specs"]), proposal)
    assert plain.reward == pytest.approx((0.9 + 1 + 0 + 0.5 + 1) / 5) and not plain.is_solved
    assert plain.feedback == "gain=63 gbw=9 pm=-20 pw=1.2 sr=5; missed: gain pm pw"
    weighted = Sizing(circuit=circuit, weights={"pm": 4.0, "pw": 2.0})
    assert weighted.assess(circuit.specs(ROW["specs"]), proposal).reward == pytest.approx((0.9 + 1 + 0 + 1 + 1) / 9)


@given(levels_of_op_amp)
def test_rewards_lie_in_0_to_1_and_1_is_all_met(levels):
    found = Sizing(circuit=OP_AMP, format="digits").assess(OP_AMP.specs(ROW["specs"]), "".join(map(str, levels)))
    assert 0 <= found.reward <= 1 and (found.reward == 1) == found.is_solved


# ---- texts


@given(st.sampled_from([OP_AMP, LADDER]), st.data())
def test_a_written_proposal_reads_as_its_levels(circuit, data):
    levels = [data.draw(st.integers(0, p.levels - 1)) for p in circuit.parameters]
    for format in ("text", "digits"):
        assert read(circuit.parameters, written(circuit.parameters, levels, format), format) == values(circuit, levels)


def test_reading_takes_what_a_chat_model_says():
    two = (Parameter(name="w1", unit="um", low=1, high=100), Parameter(name="i5", unit="uA", low=5, high=200))
    for text in ("w1=2.5 i5=30", "First w1=9.\nThen I'd take **w1 = 2.5um, i5=3e1**.", "W1=2.5UM; I5=30 uA (more)"):
        assert read(two, text, "text") == {"w1": 2.5, "i5": 30.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w1=2", "i5 is missing"),
        ("w1=2k i5=30", "w1=2k is not a number in um"),
        ("w1=1.2.3 i5=30", "not a number"),
        ("w1=2 i5=1e999", "outside 5..200"),
        ("w1=-2 i5=30", "outside 1..100"),
        ("xw1=2 i5=30", "w1 is missing"),
    ],
)
def test_reading_says_what_is_wrong(text, message):
    two = (Parameter(name="w1", unit="um", low=1, high=100), Parameter(name="i5", unit="uA", low=5, high=200))
    with pytest.raises(ValueError, match=re.escape(message)):
        read(two, text, "text")


def test_two_digits_for_many_levels():
    fine = (Parameter(name="a", low=0, high=1, scale="linear", levels=51), Parameter(name="b", low=1, high=2))
    assert read(fine, "057\n", "digits") == {"a": 0.1, "b": fine[1].values[7]}
    for text, message in (("517", "a has levels 0 to 50"), ("57", "expected 3 digits"), ("٠٥٧", "expected 3")):
        with pytest.raises(ValueError, match=message):
            read(fine, text, "digits")


def test_digits_fit_the_tiny_model():
    """All of an episode is in its default alphabet and well below its 256 positions."""
    environment, text = Sizing(circuit=OP_AMP, format="digits")(ROW, 0), ROW["prompt"]
    for said in play(environment, "4455445", "5464354", "bad", "0000000", "4455446"):
        assert len(said.content) == 12
        text += "4455445<eos>" + said.content
    assert prompt_of(OP_AMP, ROW["specs"], "digits") == ROW["prompt"]
    assert len(character_tokenizer(TinyConfig().alphabet)(text)["input_ids"]) == len(text) - 5 * 4 == 111


def test_margins_are_a_digit_per_spec():
    """Against ROW: gain a sixth short, gbw 8 % beyond, pm as asked, pw more than twice, sr four times its target."""
    circuit = replace(OP_AMP, simulator=lambda p: {"gain": 58.3, "gbw": 5.4, "pm": 60, "pw": 2, "sr": 20})
    factory = Sizing(circuit=circuit, format="digits", margins=True, turns=2)
    said = play(factory(ROW, 0), "4455445", "no")
    assert [s.content for s in said] == ["-26509=", "-*****="]
    assert play(factory({"specs": "gbw>=5 pw<=2"}, 0), "4455445")[0].content == "-*6*5*="


@given(st.sampled_from([*OP_AMP.metrics, *LADDER.metrics]), st.integers(1, 98), st.floats(-200, 1e4))
def test_a_margin_is_negative_where_the_spec_is_missed(metric, level, value):
    spec = Spec(metric=metric, target=metric.grid[level])
    assert (spec.margin(value) >= 0) == spec.is_met(value)


def test_part_of_the_metrics_may_be_asked_for():
    assert prompt_of(OP_AMP, "pw<=0.8 gain>=70", "digits") == "70****44**="
    said = play(Sizing(circuit=OP_AMP)({"specs": "pw<=5 gain>=50"}, 0), "w1=10 w3=10 w6=100 l=1 i5=20 i7=100 cc=2")
    assert said[0].reward == 1 and said[0].content.endswith("all specs met")


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ("gain>70", "spec 'gain>70'"),
        ("gain<=70", "gain>=.. gbw>=.."),
        ("speed>=1", "none of op_amp's"),
        ("gain>=70 gain>=60", "each once"),
        ("gain>=0", "relative to 0.0"),
        ("", "ask for nothing"),
    ],
)
def test_wrong_specs_say_what_to_write(specs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        OP_AMP.specs(specs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sizing(circuit=OP_AMP, turns=0), "turns = 0"),
        (lambda: Sizing(circuit=OP_AMP, format="json"), "text, digits"),
        (lambda: Sizing(circuit=OP_AMP, value="mean"), "max, sum, last"),
        (lambda: Sizing(circuit=OP_AMP, weights={"gane": 1.0}), "gain, gbw"),
        (lambda: Sizing(circuit=OP_AMP, weights={"gain": 0.0}), "positive weight"),
        (lambda: Sizing(circuit=OP_AMP, margins=True), "margins are digits"),
        (lambda: Sizing(circuit=OP_AMP)({"prompt": "x"}, 0), "column 'specs'"),
        (lambda: Parameter(name="r", low=0, high=1), "positive ones on a log scale"),
        (lambda: Parameter(name="r", low=1, high=2, levels=1), "2 to 100"),
        (lambda: Parameter(name="r", low=1000, high=1001), "cannot tell apart"),
        (lambda: replace(OP_AMP, training={"speed": (0, 1)}), "none of its metrics"),
        (lambda: SpecDraws(circuit=rc_ladder(1))(seed=0, index=0), "lower tries"),
        (lambda: replace(OP_AMP, metrics=()), "needs parameters and metrics"),
        (lambda: replace(OP_AMP, parameters=(Parameter(name="gain", low=1, high=2),)), "names of their own"),
        (lambda: rc_ladder(10), "1 to 9"),
        (
            lambda: SpecDraws(circuit=replace(OP_AMP, training={"gain": (98.2, 98.8)}))(seed=0, index=0),
            "widen the range",
        ),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


# ---- the episode


@pytest.mark.parametrize("name", CIRCUITS)
@pytest.mark.parametrize("format", ["digits", "text"])
def test_the_environment_keeps_the_protocol(name, format):
    data = sizing(f"sizing/{name}", {"format": format}, 0, 2)
    factory = Sizing(circuit=CIRCUITS[name](), format=format, improvement=format == "text")
    report = check_env(factory, data.train[:3], actions=[row["completion"] for row in data.cold_start[:7]])
    assert report.ok, str(report)
    made = factory(data.train[0], 0)
    assert isinstance(made, Forks) and isinstance(made, Evaluates) and isinstance(made, Scores)
    _: Env = made


def test_improvement_pays_what_is_new():
    texts = ("3333333", "4455445", "nonsense", "3333333", "5464354")
    plain = play(Sizing(circuit=OP_AMP, format="digits")(ROW, 0), *texts)
    paid = play(Sizing(circuit=OP_AMP, format="digits", improvement=True)(ROW, 0), *texts)
    rewards = [said.reward for said in plain]
    assert rewards[0] == rewards[3] < rewards[1] < rewards[4] and rewards[2] == 0
    assert [said.reward for said in paid] == pytest.approx(
        [rewards[0], rewards[1] - rewards[0], 0, 0, rewards[4] - rewards[1]]
    )
    assert sum(said.reward for said in paid) == pytest.approx(max(rewards))
    assert [said.facts["failed"] for said in plain] == [0, 0, 1, 0, 0] and plain[2].content == "-**********="
    assert [said.is_done for said in plain] == [False, False, False, False, True]


@pytest.mark.parametrize("value, wanted", [("max", max), ("sum", sum), ("last", lambda rewards: rewards[-1])])
def test_the_value_of_a_trajectory(value, wanted):
    environment = Sizing(circuit=OP_AMP, format="digits", value=value, turns=3)(ROW, 0)
    assert environment.score() is None
    rewards = [said.reward for said in play(environment, "4455445", "5464354", "3333333")]
    assert environment.score() == pytest.approx(wanted(rewards))
    with pytest.raises(ValueError, match="3 turns are over"):
        environment.step(Action(text="3333333"))


def test_simulations_are_counted_and_evaluate_then_step_costs_one():
    counting = Counting(simulate_op_amp)
    environment = Sizing(circuit=replace(OP_AMP, simulator=counting), format="digits")(ROW, 0)
    alternatives = ["4455445", "5464354", "3333333"]
    seen = [environment.evaluate(Action(text=text)) for text in alternatives]
    assert environment.step(Action(text=alternatives[1])) == seen[1]
    environment.step(Action(text="not a proposal"))
    assert counting.calls == 3
    fork = environment.fork()
    fork.step(Action(text="4455445"))
    assert counting.calls == 3 and fork.step(Action(text="1111111")).reward > 0 and counting.calls == 4


def one_metric(simulator):
    return Circuit(
        name="own",
        title="a thing",
        parameters=(Parameter(name="a", low=1, high=10),),
        metrics=(Metric(name="m", direction=">=", low=1, high=100),),
        simulator=simulator,
    )


def test_a_simulator_of_ones_own():
    def simulator(parameters):
        if parameters["a"] > 8:
            raise SimulationError("no operating point")
        return {"m": parameters["a"] ** 2 if parameters["a"] > 2 else math.nan, "unused": 0}

    said = play(Sizing(circuit=one_metric(simulator))({"specs": "m>=50"}, 0), "a=5", "a=9", "a=1.5", "a=7.5")
    assert [s.reward for s in said] == [0.5, 0, 0, 1]
    assert said[1].content == "simulation failed: no operating point"
    assert said[2].content == "simulation failed: m came out as nan"
    specs, levels = SpecDraws(circuit=one_metric(simulator), tries=0)(seed=0, index=0)
    assert one_metric(simulator).specs(specs)[0].is_met(one_metric(simulator).parameters[0].values[levels[0]] ** 2)


def test_a_defect_of_a_simulator_is_not_a_failed_simulation():
    with pytest.raises(KeyError):
        play(Sizing(circuit=one_metric(lambda p: {"m": p["b"]}))({"specs": "m>=50"}, 0), "a=5")
    with pytest.raises(ValueError, match="gave no 'm', only"):
        play(Sizing(circuit=one_metric(lambda p: {"n": 1.0}))({"specs": "m>=50"}, 0), "a=5")


# ---- rows


@pytest.mark.parametrize("name", CIRCUITS)
@pytest.mark.parametrize("transfer", [True, False])
def test_specs_can_be_met_and_held_out_ones_lie_beyond(name, transfer):
    data = sizing(f"sizing/{name}", {"transfer": transfer, "size": 40}, 0, 20)
    circuit = CIRCUITS[name]()
    assert (len(data.train), len(data.held_out), len(data.cold_start)) == (40, 20, 40)
    for row in [*data.train, *data.held_out]:
        assert data.is_correct(row["witness"], row)
        assert not data.is_correct("nonsense", row)
    axis = "gbw" if name == "op_amp" else "fc"
    target = lambda row: next(s.target for s in circuit.specs(row["specs"]) if s.metric.name == axis)  # noqa: E731
    trained, held = [target(row) for row in data.train], [target(row) for row in data.held_out]
    assert (max(trained) < min(held)) == transfer


def test_random_sizings_do_not_meet_the_drawn_specs():
    generator, met = np.random.default_rng(0), {}
    for tries in (0, 1000):
        draw = SpecDraws(circuit=LADDER, tries=tries)
        wanted = [LADDER.specs(draw(seed=0, index=i)[0]) for i in range(30)]
        assess = Sizing(circuit=LADDER, format="digits").assess
        texts = ["".join(map(str, levels)) for levels in generator.integers(10, size=(60, 6))]
        met[tries] = sum(assess(specs, text).is_solved for specs in wanted for text in texts)
    assert met[1000] < met[0] / 5


def test_rows_are_a_function_of_the_seed():
    first, second = (sizing("sizing/op_amp", {"size": 10}, seed, 5) for seed in (0, 1))
    assert list(first.train) == list(sizing("sizing/op_amp", {"size": 10}, 0, 5).train) != list(second.train)
    assert list(first.held_out) == list(second.held_out)
    # A saved run must mean the same rows in the next release.
    assert (first.train[0]["specs"], first.train[0]["witness"]) == (
        "gain>=84 gbw>=5.72 pm>=58 pw<=1.18 sr>=14",
        "2985553",
    )


@pytest.mark.parametrize("format", ["digits", "text"])
def test_cold_start_shows_every_turn_and_random_proposals(format):
    data = sizing("sizing/rc_ladder", {"size": 60, "format": format, "turns": 3}, 0, 1)
    circuit, rewards = rc_ladder(), []
    factory = Sizing(circuit=circuit, format=format, turns=3)
    for i, row in enumerate(data.cold_start):
        if format == "digits":
            *turns, last = row["prompt"].split("<eos>")
            assert len(turns) == i % 3 and last.endswith("=")
            assert row["prompt"].startswith(data.train[i]["prompt"])
        else:
            assert [message["role"] for message in row["prompt"]] == ["user", "assistant"] * (i % 3) + ["user"]
        rewards.append(factory.assess(circuit.specs(row["specs"]), row["completion"]).reward)
    assert min(rewards) > 0 and np.mean(rewards) < 0.9  # legal, and not good
    assert len({row["completion"] for row in data.cold_start}) > 50


@pytest.mark.parametrize("format", ["digits", "text"])
def test_worked_examples_end_in_a_sizing_that_meets_their_specs(format):
    """Behind sizings near it, in the order of the turns; on specs that are no training rows."""
    options = {"size": 20, "format": format, "turns": 3, "margins": format == "digits", "examples": 30}
    data = sizing("sizing/op_amp", options, 0, 1)
    factory = Sizing(circuit=OP_AMP, format=format, margins=format == "digits")
    assert len(data.cold_start) == 30 and list(data.cold_start) == list(
        sizing("sizing/op_amp", options, 0, 1).cold_start
    )
    assert not {row["specs"] for row in data.cold_start} & {row["specs"] for row in data.train}
    for i, row in enumerate(data.cold_start):
        assert data.is_correct(row["completion"], row)
        if format == "text":
            tried = [message["content"] for message in row["prompt"] if message["role"] == "assistant"]
            heard = [message["content"] for message in row["prompt"][2::2]]
        else:
            turns = row["prompt"].split("<eos>")
            tried, heard = [turn[-7:] for turn in turns[:-1]], turns[1:]
        assert len(tried) == i % 3
        specs = OP_AMP.specs(row["specs"])
        for text, feedback in zip(tried, heard, strict=True):
            assert feedback.startswith(factory.assess(specs, text).feedback)
            if format == "digits":
                assert max(abs(int(a) - int(b)) for a, b in zip(text, row["completion"], strict=True)) <= 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sizing/op_am", {}, "did you mean sizing/op_amp"),
        ("sizing/op_amp", {"stages": 2}, "has no option 'stages'"),
        ("sizing/op_amp", {"format": "json"}, "text, digits"),
        ("sizing/op_amp", {"size": 0}, "must be at least 1"),
        ("sizing/op_amp", {"examples": -1}, "must be at least 0"),
        ("sizing/rc_ladder", {"stages": 12}, "1 to 9"),
    ],
)
def test_wrong_options_say_what_to_do(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sizing(name, options, 0, 1)
