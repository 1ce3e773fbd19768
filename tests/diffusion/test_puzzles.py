"""The tasks for diffusion models: Sudoku of 4x4 and Countdown with three numbers."""

from fractions import Fraction

import numpy as np
import pytest

from gspo.rewards.builtin import BUILTIN
from gspo.rewards.countdown import evaluate
from gspo.tasks import load_task
from gspo.tasks.sudoku import grids, is_solved, obeys

MANY = 300


def task(name, **options):
    return load_task(name, options, seed=0, held_out_prompts=MANY)


def test_there_are_288_grids():
    assert len(grids()) == 288 == len({tuple(grid) for grid in grids()})
    assert all(obeys(grid) for grid in grids()) and not obeys(np.array([1, 2, 3, 4] * 4))


@pytest.mark.parametrize("empty", (1, 8, 10))
def test_puzzles_have_one_solution(empty):
    data = task("sudoku", empty=empty)
    for row in [data.train[i] for i in range(MANY)] + list(data.held_out):
        given = np.array([int(c) for c in row["prompt"]])
        fits = (grids()[:, given > 0] == given[given > 0]).all(axis=1)
        assert fits.sum() == 1 and "".join(map(str, grids()[fits][0])) == row["answer"]
        assert row["prompt"].count("0") == empty
        assert (
            data.is_correct(row["answer"], row)
            and BUILTIN["sudoku"]()(row["prompt"], row["answer"], row["answer"]) == 1
        )


def test_no_held_out_grid_is_trained_on():
    data, other = task("sudoku"), load_task("sudoku", {}, seed=5, held_out_prompts=MANY)
    held, train = ({row["answer"] for row in rows} for rows in (data.held_out, [data.train[i] for i in range(3000)]))
    assert len(held) == 28 and len(train) == 260 and not held & train
    assert data.train[7] == other.train[7] and data.held_out[7] == other.held_out[7]
    assert len({row["prompt"] for row in data.held_out}) > MANY * 0.9


def test_the_start_fills_rows_and_knows_no_columns():
    right = BUILTIN["sudoku"]()
    data, mixed = task("sudoku"), task("sudoku", noise=0.5)
    rows, some = ([d.cold_start[i] for i in range(1500)] for d in (data, mixed))
    for row in rows:
        assert all(given in ("0", said) for given, said in zip(row["prompt"], row["completion"], strict=True))
        assert all(sorted(row["completion"][i : i + 4]) == list("1234") for i in range(0, 16, 4))
    shares = [np.mean([right(r["prompt"], r["completion"], r["answer"]) for r in found]) for found in (rows, some)]
    assert 0.45 < shares[0] < 0.55 and 0.7 < shares[1] < 0.8


def test_what_sudoku_pays_for():
    right, prompt, answer = BUILTIN["sudoku"](), "0201004031202400", "4231134231242413"
    assert right(prompt, answer, answer) == 1.0
    assert right(prompt, "3" + answer[1:], answer) == pytest.approx(7 / 8)
    assert right(prompt, answer[:4], answer) == pytest.approx(2 / 8)  # what is missing is wrong
    assert right(prompt, answer + "999", answer) == 1.0 and right(prompt, "", answer) == 0.0
    assert right(prompt, "3" * 16, answer) == pytest.approx(3 / 8)
    assert is_solved(prompt, answer) and not is_solved(prompt, answer[:-1]) and not is_solved(prompt, "1234" * 4)
    other = "".join(map(str, grids()[0]))
    assert not is_solved(prompt, other)  # obeys the rules, and changes what was given


@pytest.mark.parametrize(
    "text, value, numbers",
    [
        ("3*7+4", 25, [3, 7, 4]),
        ("(8-2)/4", Fraction(3, 2), [8, 2, 4]),
        ("8/(2-2)", None, [8, 2, 2]),
        ("8-3-2", 3, [8, 3, 2]),
        ("24/4/2", 3, [24, 4, 2]),
        (" 3 + 4 ", 7, [3, 4]),
        ("((5))", 5, [5]),
    ],
)
def test_expressions_are_read(text, value, numbers):
    assert evaluate(text) == (value, numbers)


@pytest.mark.parametrize(
    "text", ["", "3+", "+3", "(3", "3)", "3 ** 2", "3//2", "2(3)", "__import__('os')", "3.5", "a", "()", "9" * 400]
)
def test_what_is_no_expression_is_nothing(text):
    assert evaluate(text) is None and BUILTIN["countdown"]()(text, [3, 2], "5") == 0.0


def test_deep_brackets_do_not_break_the_parser():
    assert evaluate("(" * 90 + "5" + ")" * 90) == (5, [5]) and evaluate("(" * 5000 + "5") is None


def test_what_countdown_pays_for():
    pays = BUILTIN["countdown"]()
    assert pays("3*7+4", [4, 3, 7], "25") == 1.0
    assert pays("3*7+5", [4, 3, 7], "25") == 0.1  # other numbers
    assert pays("21+4", [4, 3, 7], "25") == 0.1
    assert pays("3+7+4", [4, 3, 7], "25") == 0.1  # another value
    assert pays("3/(4-4)", [4, 3, 4], "25") == 0.1
    assert BUILTIN["countdown"](format=0.0)("3+7+4", [4, 3, 7], "25") == 0.0


def test_countdown_questions_can_be_answered():
    data = task("countdown", noise=0.0)
    pays = BUILTIN["countdown"]()
    for i in range(MANY):
        row = data.cold_start[i]
        assert pays(row["completion"], row["numbers"], row["answer"]) == 1.0 and len(row["completion"]) <= 9
    train = {row["prompt"] for row in (data.train[i] for i in range(len(data.train)))}
    assert not train & {row["prompt"] for row in data.held_out}
    noisy = task("countdown", noise=1.0).cold_start
    paid = [pays(row["completion"], row["numbers"], row["answer"]) for row in (noisy[i] for i in range(MANY))]
    assert 0 < paid.count(1.0) < 0.2 * MANY and 0.0 not in paid


@pytest.mark.parametrize(
    "name, options", [("sudoku", {"noise": 2.0}), ("sudoku", {"size": 9}), ("countdown", {"largest": 2})]
)
def test_options_are_checked(name, options):
    with pytest.raises(ValueError):
        task(name, **options)
