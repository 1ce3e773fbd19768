"""The task chain_steps: sums written in steps, with an answer that need not follow from them."""

import pytest

from gspo.rewards.numeric import numeric
from gspo.tasks import load_task
from gspo.verifiers.rules import inconsistency


def load(seed=0, held_out_prompts=1000, **options):
    return load_task("chain_steps", options, seed=seed, held_out_prompts=held_out_prompts)


def by_prompt(rows):
    return {row["prompt"]: row for row in rows}


def test_steps_then_the_answer():
    shown = by_prompt(load(terms=3).cold_start)
    assert shown["7+5+9="] == {"prompt": "7+5+9=", "answer": "21", "completion": "7+5=12 12+9=21 21"}
    assert shown["3+0+4="]["completion"] == "3+0=03 03+4=07 07"
    wide = by_prompt(load(terms=2, digits=2).cold_start)
    assert wide["17+05="]["completion"] == "17+05=022 022"


def test_rows_are_all_sums_and_the_split_is_fixed():
    data = load()
    train, held, shown = (set(by_prompt(rows)) for rows in (data.train, data.held_out, data.cold_start))
    assert (len(train), len(held)) == (9000, 1000) and not train & held and shown == train
    assert list(load(seed=5).held_out) == list(data.held_out)
    assert {len(prompt) for prompt in train | held} == {8}
    assert "9,000 of all 10,000 sums of 4 numbers below 10" in data.reading
    assert len({len(row["completion"]) for row in data.cold_start}) == 1


def test_a_right_answer_is_right_whatever_the_steps_say():
    data = load(terms=3)
    row = {"prompt": "7+5+8=", "answer": "20"}
    (reward,) = data.rewards
    assert reward.name == "numeric"
    for text, is_right in (("7+5=12 12+8=20 20", True), ("7+5=99 20", True), ("7+5=12 12+8=20 21", False), ("", False)):
        assert data.is_correct(text, row) == is_right == bool(numeric()(text, row["answer"]))


def test_every_shown_chain_is_consistent_unless_there_is_noise():
    assert not any(inconsistency(row["completion"]) for row in load().cold_start)


def test_noise_spoils_a_step_and_leaves_the_answer():
    plain, noisy = load(terms=3), load(terms=3, noise=0.25)
    sound = by_prompt(plain.cold_start)
    faults = [row for row in noisy.cold_start if inconsistency(row["completion"])]
    assert 0.2 < len(faults) / len(noisy.cold_start) < 0.3
    assert all(noisy.is_correct(row["completion"], row) for row in noisy.cold_start)
    assert {len(row["completion"]) for row in noisy.cold_start} == {len("7+5=12 12+8=20 20")}  # two digits, no sign
    changed = [a != b for a, b in zip(plain.cold_start, noisy.cold_start, strict=True)]
    assert sum(changed) == len(faults)
    step = lambda row: row["completion"].split()[0]  # noqa: E731
    first = [row for row in faults if step(row) != step(sound[row["prompt"]])]
    assert 0 < len(first) < len(faults)  # either step may be the wrong one
    assert all(inconsistency(row["completion"]) for row in load(terms=3, noise=1.0).cold_start)
    assert list(noisy.cold_start) == list(load(terms=3, noise=0.25, seed=7).cold_start)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": 1}, "terms must be at least 2"),
        ({"digits": 0}, "digits at least 1"),
        ({"terms": 4, "digits": 2}, "1,000,000 sums at most"),
        ({"noise": 1.5}, "must be a share"),
        ({"noise": 1}, "must be of type float"),
        ({"steps": 2}, "has no option 'steps'; it has: terms, digits, noise"),
    ],
)
def test_wrong_options_say_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        load(**options)
