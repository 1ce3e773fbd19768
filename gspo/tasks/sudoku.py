"""4x4 Sudoku as bare text: 16 characters asked, row by row with 0 for an empty cell, and the 16 of the solved grid."""

from functools import lru_cache
from itertools import permutations, product
from typing import Any

import numpy as np

from gspo.rewards.base import RewardConfig
from gspo.rewards.sudoku import CELLS
from gspo.tasks.base import SPLIT_SEED, Dataset, Row, Rows, option, permutation, refuse_unknown

STREAM = 1 << 33
"""Streams of the puzzles: this, and the number of the puzzle above it; of their wrong solutions: one bit higher."""


def sudoku(options: dict[str, Any], seed: int, held_out_prompts: int) -> Dataset:
    """Puzzles with one solution, `empty` cells to fill (default 8, at most 10); a tenth of all 288 grids held out.

    No held-out puzzle has the solution of one that is trained on. The reward is the share of the empty cells that are
    as in the solution; `accuracy` counts grids that keep the given digits and break no rule. Cold start rows are partly
    wrong: in a share `noise` of them (default 1.0) the empty cells hold the digits that their row lacks, in random
    order, so that a model which learns them fills rows and knows nothing of columns and boxes. Options: `empty`,
    `noise`, `puzzles` (to train on, default 20,000). Neither split nor noise depends on `seed`.
    """
    refuse_unknown("sudoku", options, ("empty", "noise", "puzzles"))
    empty, noise = option(options, "empty", 8), option(options, "noise", 1.0)
    puzzles = option(options, "puzzles", 20_000)
    if not 1 <= empty <= 10 or not 0 <= noise <= 1 or puzzles < 1:
        raise ValueError(
            f"task options empty = {empty}, noise = {noise}, puzzles = {puzzles}: empty must be 1 to 10, noise a share "
            "from 0 to 1, puzzles at least 1"
        )
    order = permutation(SPLIT_SEED, CELLS, len(grids()))
    held, train = order[: len(order) // 10], order[len(order) // 10 :]

    def row(i: int) -> Row:
        number = held[-i % len(held)] if i < 0 else train[i % len(train)]
        return {"prompt": puzzle(int(number), empty, i), "answer": text(grids()[number])}

    def with_completion(i: int) -> Row:
        made = row(i)
        return {**made, "completion": filled_by_rows(made["prompt"], made["answer"], i, noise)}

    return Dataset(
        name="sudoku",
        train=Rows(range(puzzles), row),
        held_out=Rows(range(-1, -1 - held_out_prompts, -1), row),
        rewards=(RewardConfig(name="sudoku"),),
        is_correct=lambda completion, row: is_solved(row["prompt"], completion.strip()),
        reading=(
            f"task sudoku: {puzzles:,} puzzles of {empty} empty cells and one solution, from {len(train)} of the 288 "
            f"grids of 4x4, to train on; {held_out_prompts:,} evaluated, from the other {len(held)} grids"
        ),
        cold_start=Rows(range(puzzles), with_completion),
    )


@lru_cache(maxsize=1)
def grids() -> np.ndarray:
    """[288, 16] every solved grid, in order."""
    rows = list(permutations((1, 2, 3, 4)))
    return np.array([g for g in (sum(four, ()) for four in product(rows, repeat=4)) if obeys(np.array(g))])


def obeys(grid: np.ndarray) -> bool:
    """Whether rows, columns and boxes of 16 digits each hold 1, 2, 3, 4."""
    square = grid.reshape(4, 4)
    boxes = square.reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(4, 4)
    return all((np.sort(lines, axis=1) == (1, 2, 3, 4)).all() for lines in (square, square.T, boxes))


@lru_cache(maxsize=1 << 16)
def puzzle(grid: int, empty: int, number: int) -> str:
    """Grid number `grid` with so many cells emptied, drawn by the puzzle's number; never one that makes two fit."""
    cells = grids()[grid].copy()
    for cell in _drawn(STREAM + number, CELLS).argsort(kind="stable"):
        if (cells == 0).sum() == empty:
            break
        cells[cell] = 0
        given = cells > 0
        if (grids()[:, given] == cells[given]).all(axis=1).sum() > 1:
            cells[cell] = grids()[grid, cell]
    return text(cells)


def filled_by_rows(prompt: str, answer: str, number: int, noise: float) -> str:
    """The solution; or, in a share `noise` of the numbers, every row filled with what it lacks, in random order."""
    draws = _drawn(2 * STREAM + number, CELLS + 1)
    if draws[-1] * 2.0**-64 >= noise:
        return answer
    cells = np.array([int(c) for c in prompt]).reshape(4, 4)
    for row, random in zip(cells, draws[:CELLS].reshape(4, 4), strict=True):
        lacking = np.setdiff1d((1, 2, 3, 4), row)
        row[row == 0] = lacking[random[: len(lacking)].argsort(kind="stable")]
    return text(cells.ravel())


def is_solved(prompt: str, completion: str) -> bool:
    """Sixteen digits that keep the given ones and obey the rules."""
    if len(completion) != CELLS or not set(completion) <= set("1234"):
        return False
    keeps = all(given in ("0", said) for given, said in zip(prompt, completion, strict=True))
    return keeps and obeys(np.array([int(c) for c in completion]))


def text(grid: np.ndarray) -> str:
    return "".join(map(str, grid))


def _drawn(stream: int, count: int) -> np.ndarray:
    return np.random.Philox(key=np.array([SPLIT_SEED, stream], dtype=np.uint64)).random_raw(count)
