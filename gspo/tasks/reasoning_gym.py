"""Any dataset of the reasoning-gym package, by name: "reasoning_gym/chain_sum"."""

import difflib
import hashlib
from dataclasses import fields
from typing import Any

from gspo.rewards.base import RewardConfig
from gspo.tasks.base import SPLIT_SEED, Dataset, Row, answer_equals, option

TRAIN_QUESTIONS = 2000
"""Questions drawn to train on unless the option `size` says otherwise."""

OURS = ("size", "seed", "instruction", "shots")
"""Options that are not the dataset's."""


def reasoning_gym(task: str, options: dict[str, Any], seed: int, held_out_prompts: int) -> Dataset:
    """Questions drawn with the run's seed to train on, with a fixed other seed to hold out, no text in both.

    Where more than a third of the train questions are among the held-out ones (there are only 200 one-digit
    sums), a third of all is held out by a hash of the text instead: the same questions for every seed.

    Options: the dataset's own (min_terms, max_digits, ...), `size` (questions drawn to train on), `seed`
    (instead of the run's), `instruction` (appended to every question, on a line of its own), `shots` (train questions
    taken out and shown, with their answers, as earlier turns of every conversation: the right format to start from).
    """
    name = task.partition("/")[2]
    size, seed = option(options, "size", TRAIN_QUESTIONS), option(options, "seed", seed)
    if size < 1:
        raise ValueError(f"task option size = {size} must be at least 1")
    instruction = option(options, "instruction", "")
    shots = option(options, "shots", 0)
    own = {n: value for n, value in options.items() if n not in OURS}
    drawn = _draw(name, {**own, "size": size, "seed": seed})
    other = SPLIT_SEED if seed != SPLIT_SEED else SPLIT_SEED + 1
    held = _draw(name, {**own, "size": 4 * max(1, held_out_prompts), "seed": other}, wanted=max(1, held_out_prompts))
    train = {question: entry for question, entry in drawn.items() if question not in held}
    how = f"held out with seed {other}"
    if 3 * len(train) < 2 * len(drawn):
        every = {**drawn, **held}
        held = {question: entry for question, entry in every.items() if _is_held_out(question)}
        train = {question: entry for question, entry in every.items() if question not in held}
        how = "held out (a third of the few there are, by a hash of their text)"
    if not held or len(train) <= shots:
        raise ValueError(f"task {task!r} makes {len(drawn)} distinct question(s): too few to hold any out")

    def asked(entry: dict[str, Any]) -> dict[str, str]:
        return {"role": "user", "content": entry["question"] + (f"\n{instruction}" if instruction else "")}

    # By hash of the text, so that the examples are the same for every seed where the questions are.
    examples = sorted(train, key=lambda question: hashlib.sha256(question.encode()).digest())[:shots]
    shown = [train.pop(question) for question in examples]
    turns = [turn for entry in shown for turn in (asked(entry), {"role": "assistant", "content": str(entry["answer"])})]

    def row(entry: dict[str, Any]) -> Row:
        prompt = [*turns, asked(entry)]
        return {"prompt": prompt, "question": entry["question"], "answer": str(entry["answer"]), "entry": entry}

    distinct = [row(entry) for entry in held.values()]
    held_out = [distinct[i % len(distinct)] for i in range(held_out_prompts)]
    evaluated = f"{held_out_prompts} evaluated" + (" (questions repeat)" if held_out_prompts > len(distinct) else "")
    return Dataset(
        name=task,
        train=[row(entry) for entry in train.values()],
        held_out=held_out,
        rewards=(RewardConfig(name="reasoning_gym", options={"dataset": name, "options": own}),),
        is_correct=answer_equals,
        reading=(
            f"task {task}: {len(train):,} distinct questions to train on (of {size:,} drawn with seed {seed}), "
            f"{len(distinct):,} distinct {how}, overlap 0, {evaluated}"
        ),
    )


def _is_held_out(question: str) -> bool:
    return hashlib.sha256(question.encode()).digest()[0] % 3 == 0


def _draw(name: str, options: dict[str, Any], wanted: int = 0) -> dict[str, dict[str, Any]]:
    """Entries by question text, the first of equal questions; stops early at `wanted` of them, if that is set."""
    entries: dict[str, dict[str, Any]] = {}
    for entry in _dataset(name, options):
        entries.setdefault(entry["question"], entry)
        if len(entries) == wanted:
            break
    return entries


def _dataset(name: str, options: dict[str, Any]):
    try:
        import reasoning_gym as gym
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError:
        raise ValueError('reasoning-gym is not installed: pip install "gspo[reasoning-gym]"') from None
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3)
        hint = f"did you mean {', '.join(f'reasoning_gym/{n}' for n in near)}?" if near else "see its gallery"
        raise ValueError(f"reasoning-gym has no dataset {name!r}; {hint}")
    known = [field.name for field in fields(DATASETS[name][1])] + ["instruction", "shots"]
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1) or known
            raise ValueError(f"reasoning_gym/{name} has no option {key!r}; did you mean {', '.join(near)}?")
    try:
        return gym.create_dataset(name, **options)
    except (AssertionError, ValueError, TypeError) as error:
        raise ValueError(f"reasoning_gym/{name} refuses these options: {error}") from error
