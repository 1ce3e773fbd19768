"""Rows for the optimisation environments: circuits (gspo/envs/sizing.py) and black boxes (gspo/envs/black_box.py).

The environment gives the rewards, turn by turn, so these datasets name none. Their cold start teaches how a proposal is
written at every turn, and nothing of what a good one is: completions, and what was tried before, are random. A
circuit's may show worked examples in their place (option `examples`): specs, sizings near one that meets them with
their feedback, and then that one. They stand for what a pretrained model knows of circuits.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, get_args

import numpy as np

from gspo.envs.black_box import BlackBox, draw_optimum, function_of
from gspo.envs.black_box import prompt_of as black_box_prompt
from gspo.envs.circuit import Circuit, Levels, Parameter
from gspo.envs.circuits import CIRCUITS, rc_ladder
from gspo.envs.proposals import Assessment, Format, written
from gspo.envs.proposals import prompt_of as sizing_prompt
from gspo.envs.sizing import Sizing, SpecDraws
from gspo.renderers import Prompt
from gspo.tasks.base import SPLIT_SEED, Dataset, Row, Rows, option, refuse_unknown

COMMON = ("format", "size", "turns", "end")
"""Options of all tasks here."""
NEAR = 2
"""Most levels by which a worked example's tried sizings differ from its witness, in each parameter."""


def sizing(name: str, options: dict[str, Any], seed: int, held_out_prompts: int) -> Dataset:
    """Specs of one circuit ("sizing/op_amp", "sizing/rc_ladder"), each set met by some sizing (column `witness`).

    Options: `format` ("digits" or "text"), `size` (rows to train on, default 2000), `transfer` (hold out specs beyond
    the training's range, the default; else others of the same range), `tries` (random sizings of which none meets a
    set of specs, default 1000), `stages` of the ladder (default 3); and for the cold start `turns` (proposals per
    episode, default 5), `end` (what ends the policy's turns in a text conversation, default "<eos>"), `margins` (as
    the environment's) and `examples` (number of worked ones, on specs of the training's range that are no training
    rows; default 0: random proposals). Training specs are drawn with the run's seed, held-out ones with a fixed seed.
    """
    circuit_name = name.partition("/")[2]
    if circuit_name not in CIRCUITS:
        near = difflib.get_close_matches(circuit_name, CIRCUITS, n=1) or list(CIRCUITS)
        raise ValueError(f"no circuit {circuit_name!r}; did you mean {' or '.join(f'sizing/{n}' for n in near)}?")
    own = ("transfer", "tries", "margins", "examples", *(("stages",) if circuit_name == "rc_ladder" else ()))
    refuse_unknown(name, options, (*COMMON, *own))
    circuit = rc_ladder(option(options, "stages", 3)) if circuit_name == "rc_ladder" else CIRCUITS[circuit_name]()
    return sizing_of(circuit, name, options, seed, held_out_prompts)


def sizing_of(circuit: Circuit, name: str, options: dict[str, Any], seed: int, held_out_prompts: int) -> Dataset:
    """The same for a circuit at hand, with a simulator of yours or one that counts."""
    format, size, turns, end = _common(options)
    transfer, examples = option(options, "transfer", True), option(options, "examples", 0)
    if examples < 0:
        raise ValueError(f"task option examples = {examples} must be at least 0")
    draw = SpecDraws(circuit=circuit, tries=option(options, "tries", 1000))
    factory = Sizing(circuit=circuit, format=format, turns=turns, margins=option(options, "margins", False))

    def drawn(draw: SpecDraws, draw_seed: int, index: int, is_held_out: bool) -> tuple[Row, Levels]:
        specs, levels = draw(seed=draw_seed, index=index, is_held_out=is_held_out)
        witness = written(circuit.parameters, levels, format)
        return {"prompt": sizing_prompt(circuit, specs, format), "specs": specs, "witness": witness}, levels

    def row(draw_seed: int, index: int, is_held_out: bool) -> Row:
        return drawn(draw, draw_seed, index, is_held_out)[0]

    def assess(text: str, row: Row) -> Assessment:
        return factory.assess(circuit.specs(row["specs"]), text)

    def worked(i: int) -> Row:
        # Behind the rows to train on, and without the sieve, which would cost several times the simulations.
        row, levels = drawn(replace(draw, tries=0), _run_seed(seed), size + i, False)
        moves = np.floor(_uniform(i, (i % turns, len(levels))) * (2 * NEAR + 1)).astype(int) - NEAR
        tried = np.clip(levels + moves, 0, [p.levels - 1 for p in circuit.parameters]).tolist()
        texts = [written(circuit.parameters, one, format) for one in tried]
        return {**row, "prompt": _after(row, texts, end, assess), "completion": row["witness"]}

    # Without transfer a seed of its own keeps held-out draws apart from every run's.
    train = _drawn(size, lambda i: row(_run_seed(seed), i, False))
    held_out = _drawn(held_out_prompts, lambda i: row(SPLIT_SEED, i, transfer))
    kind = "beyond the training's range" if transfer else "of the same range"
    return Dataset(
        name=name,
        train=train,
        held_out=held_out,
        rewards=(),
        is_correct=lambda completion, row: assess(completion, row).is_solved,
        reading=(
            f"task {name}: {size:,} sets of specs drawn with seed {seed} to train on, {held_out_prompts:,} drawn with "
            f"seed {SPLIT_SEED} {kind} held out and evaluated; each set is met by some sizing"
        ),
        cold_start=_drawn(examples, worked)
        if examples
        else _cold_start(train, circuit.parameters, format, turns, end, assess),
    )


def black_box(options: dict[str, Any], seed: int, held_out_prompts: int) -> Dataset:
    """Optima to find in one function, each row's at a place of its own; held-out places are never trained on.

    Options: `function` (default sphere; see gspo/envs/black_box.py), `held_out_function` (transfer; default the same),
    `dimensions` (default 4), and those of `sizing`: `format`, `size`, `turns`, `end`.
    """
    refuse_unknown("black_box", options, (*COMMON, "function", "held_out_function", "dimensions"))
    format, size, turns, end = _common(options)
    dimensions = option(options, "dimensions", 4)
    function = function_of(option(options, "function", "sphere"), dimensions)
    other = function_of(option(options, "held_out_function", function.name), dimensions)
    factory = BlackBox(format=format, turns=turns)

    def row(name: str, draw_seed: int, index: int, is_held_out: bool) -> Row:
        optimum = draw_optimum(dimensions, seed=draw_seed, index=index, is_held_out=is_held_out)
        prompt = black_box_prompt(function_of(name, dimensions), format)
        return {"prompt": prompt, "function": name, "optimum": optimum}

    train = _drawn(size, lambda i: row(function.name, _run_seed(seed), i, False))
    held_out = _drawn(held_out_prompts, lambda i: row(other.name, SPLIT_SEED, i, True))
    return Dataset(
        name="black_box",
        train=train,
        held_out=held_out,
        rewards=(),
        is_correct=lambda completion, row: factory.assess_row(row, completion).is_solved,
        reading=(
            f"task black_box: {size:,} places of the optimum of {function.name} in {dimensions} dimensions, drawn with "
            f"seed {seed}, to train on; {held_out_prompts:,} other places, of {other.name}, held out and evaluated"
        ),
        cold_start=_cold_start(
            train, function.parameters, format, turns, end, lambda text, row: factory.assess_row(row, text)
        ),
    )


def _common(options: dict[str, Any]) -> tuple[Format, int, int, str]:
    format, size = option(options, "format", "digits"), option(options, "size", 2000)
    turns, end = option(options, "turns", 5), option(options, "end", "<eos>")
    if format not in get_args(Format):
        raise ValueError(f"task option format = {format!r} must be one of {', '.join(get_args(Format))}")
    if size < 1 or turns < 1:
        raise ValueError(f"task options size = {size} and turns = {turns} must be at least 1")
    return format, size, turns, end


def _run_seed(seed: int) -> int:
    """The run's seed, kept off the one that held-out rows are drawn with."""
    return seed if seed != SPLIT_SEED else SPLIT_SEED + 1


def _drawn(size: int, make: Callable[[int], Row]) -> Rows:
    """Rows drawn when they are first read, and kept: a draw takes milliseconds."""
    return Rows(range(size), cache(make))


def _cold_start(
    train: Sequence[Row],
    parameters: Sequence[Parameter],
    format: Format,
    turns: int,
    end: str,
    assess: Callable[[str, Row], Assessment],
) -> Rows:
    """One row per train row: after 0 to turns - 1 random proposals and their feedback, one more random proposal."""

    def random_proposals(i: int) -> list[str]:
        drawn = _uniform(i, (1 + i % turns, len(parameters)))
        levels = (drawn * [p.levels for p in parameters]).astype(int)
        return [written(parameters, proposal, format) for proposal in levels.tolist()]

    def make(i: int) -> Row:
        row, (*tried, completion) = train[i], random_proposals(i)
        return {**row, "prompt": _after(row, tried, end, assess), "completion": completion}

    return Rows(range(len(train)), make)


def _uniform(i: int, shape: tuple[int, int]) -> np.ndarray:
    """Numbers in 0..1, a function of i."""
    generator = np.random.Philox(key=np.array([SPLIT_SEED, i], dtype=np.uint64))
    return generator.random_raw(shape[0] * shape[1]).reshape(shape) * 2.0**-64


def _after(row: Row, tried: Sequence[str], end: str, assess: Callable[[str, Row], Assessment]) -> Prompt:
    """The row's prompt, then proposals and their feedback."""
    prompt: Prompt = row["prompt"]
    for text in tried:
        feedback = assess(text, row).feedback
        if isinstance(prompt, str):
            prompt = prompt + text + end + feedback
        else:
            turn = [{"role": "assistant", "content": text}, {"role": "user", "content": feedback}]
            prompt = [*prompt, *turn]
    return prompt
