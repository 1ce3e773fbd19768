import math
import re
import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gspo.envs import Action
from gspo.envs.black_box import CLASSIC, BlackBox, draw_optimum, function_of, typical_regret
from gspo.envs.check import check_env
from gspo.tasks.sizing import black_box

optima = st.lists(st.integers(0, 99), min_size=2, max_size=6)


def digits(levels):
    return "".join(f"{level:02d}" for level in levels)


def said(row, text, **options):
    return BlackBox(format="digits", **options)(row, 0).step(Action(text=text))


@given(st.sampled_from(sorted(CLASSIC)), optima)
def test_the_optimum_is_where_the_row_says(name, optimum):
    row = {"function": name, "optimum": optimum}
    at_best = said(row, digits(optimum))
    assert at_best.reward == pytest.approx(1, abs=1e-9) and at_best.facts["solved"] == 1 and at_best.content == "-99="


@given(st.sampled_from(sorted(CLASSIC)), optima, st.data())
def test_elsewhere_it_is_worse_and_never_nothing(name, optimum, data):
    point = data.draw(st.lists(st.integers(0, 99), min_size=len(optimum), max_size=len(optimum)))
    found = said({"function": name, "optimum": optimum}, digits(point))
    assert 0 < found.reward <= 1 and (found.reward > 1 - 1e-9) == (point == optimum)


@pytest.mark.parametrize("name", CLASSIC)
def test_the_classic_functions_against_loops(name):
    loops = {
        "sphere": lambda x: sum(v * v for v in x),
        "rosenbrock": lambda x: sum(100 * (b - a * a) ** 2 + (1 - a) ** 2 for a, b in pairwise(x)),
        "ackley": lambda x: (
            -20 * math.exp(-0.2 * math.sqrt(sum(v * v for v in x) / len(x)))
            - math.exp(sum(math.cos(2 * math.pi * v) for v in x) / len(x))
            + 20
            + math.e
        ),
        "rastrigin": lambda x: 10 * len(x) + sum(v * v - 10 * math.cos(2 * math.pi * v) for v in x),
    }
    x = np.array([0.3, -1.2, 2.0])
    function = function_of(name, 3)
    assert function.call(x) == pytest.approx(loops[name](x.tolist()))
    assert function.call(function.best) == 0.0


def test_the_reward_by_hand():
    """At the scale's own regret the reward is 1/2; nine random points in ten get less."""
    scale = typical_regret("sphere", 2)
    function = function_of("sphere", 2)
    row, environment = {"function": "sphere", "optimum": [0, 50]}, BlackBox()
    distance = math.sqrt(scale)
    x = (-5.12 + distance, function.parameters[1].values[50])
    observation = environment(row, 0).step(Action(text=f"x1={x[0]!r} x2={x[1]!r}"))
    assert observation.reward == pytest.approx(0.5) and observation.content.startswith(f"f={scale:.4g};")
    points = np.random.default_rng(0).uniform(-5.12, 5.12, (4000, 2))
    assert np.mean([function.call(point) < scale for point in points]) == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("format", ["digits", "text"])
def test_the_environment_keeps_the_protocol(format):
    data = black_box({"format": format, "function": "rastrigin"}, 0, 2)
    report = check_env(
        BlackBox(format=format), data.train[:3], actions=[row["completion"] for row in data.cold_start[:6]]
    )
    assert report.ok, str(report)


def test_held_out_places_are_never_trained_on():
    drawn = [[tuple(draw_optimum(2, seed=s, index=i, is_held_out=h)) for i in range(500)] for s, h in ((0, 0), (1, 1))]
    assert not set(drawn[0]) & set(drawn[1])
    assert draw_optimum(2, seed=0, index=0) == draw_optimum(2, seed=0, index=0) != draw_optimum(2, seed=0, index=1)
    data = black_box({"function": "sphere", "held_out_function": "ackley", "size": 10, "dimensions": 3}, 0, 4)
    assert {row["function"] for row in data.train} == {"sphere"} and {r["function"] for r in data.held_out} == {
        "ackley"
    }
    for row in [*data.train, *data.held_out]:
        assert data.is_correct(digits(row["optimum"]), row) and not data.is_correct("999999", row)
    assert data.cold_start[2]["prompt"].count("<eos>") == 2 and data.train[0]["prompt"] == "03="


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: function_of("spere", 2), "sphere, rosenbrock"),
        (lambda: function_of("sphere", 1), "at least 2"),
        (lambda: BlackBox()({"prompt": "x"}, 0), "'function' is missing"),
        (lambda: BlackBox()({"function": "sphere", "optimum": [0, 100]}, 0), "levels from 0 to 99"),
        (lambda: black_box({"functions": "sphere"}, 0, 1), "has no option 'functions'"),
    ],
)
def test_mistakes_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


# ---- opfunu


def opfunu_function(name, dimensions):
    pytest.importorskip("matplotlib")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function_of(f"opfunu/{name}", dimensions)
        except ValueError as error:
            if "not installed" in str(error):
                pytest.skip("opfunu is not installed")
            raise


@pytest.mark.parametrize(("name", "dimensions"), [("F12017", 2), ("F52017", 10), ("Ackley01", 2)])
def test_opfunu_functions_take_their_minimum_where_the_row_says(name, dimensions):
    function = opfunu_function(name, dimensions)
    optimum = [20 + 5 * i for i in range(dimensions)]
    row = {"prompt": f"{dimensions:02d}=", "function": function.name, "optimum": optimum}
    assert said(row, digits(optimum)).reward == pytest.approx(1)
    assert 0 < said(row, digits([50] * dimensions)).reward < 1
    # Beyond the box of the function: the value at its edge.
    assert said({**row, "optimum": [99] * dimensions}, digits([0] * dimensions)).reward > 0
    report = check_env(BlackBox(format="digits"), [row], actions=[digits(optimum), digits([3] * dimensions)])
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("name", "dimensions", "message"),
    [
        ("F12017", 4, "refuses 4 dimensions: The file named: M_1_D4.txt is not found"),
        ("Hartmann6", 2, "has 6 dimensions"),
        ("Damavandi", 2, "is 77 where it says its minimum 0 is"),
        ("F172005", 10, "has random terms"),
        ("Nothing", 2, "no function class 'Nothing'"),
    ],
)
def test_opfunu_functions_that_cannot_be_scored_are_refused(name, dimensions, message):
    opfunu_function("Ackley01", 2)
    with pytest.raises(ValueError, match=re.escape(message)):
        function_of(f"opfunu/{name}", dimensions)
