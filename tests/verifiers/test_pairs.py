"""Which attempts meet as pairs."""

from hypothesis import given
from hypothesis import strategies as st

from gspo.verifiers import Attempt, Verdict, build_pairs, solved_prompts


def judged(ids, correct, *, prompt=0, consistent=True, repetitive=False, cut=False):
    attempt = Attempt(
        prompt_id=prompt, prompt="p", text="t", answer="a", reward=float(correct), is_cut=cut, prompt_ids=(9, prompt),
        ids=tuple(ids),
    )  # fmt: skip
    return attempt, Verdict(is_correct=correct, is_consistent=consistent, is_repetitive=repetitive, note="n")


def test_the_longest_sound_attempt_meets_the_first_wrong_one():
    (pair,) = build_pairs([judged([1], True), judged([2, 2], True), judged([3], False), judged([4], False)])
    assert (pair.kind, pair.chosen_ids, pair.rejected_ids, pair.prompt_ids) == ("accuracy", (2, 2), (3,), (9, 0))


def test_right_answers_for_wrong_reasons_are_rejected_too():
    pairs = build_pairs([judged([1], True), judged([2], True, consistent=False), judged([3], True, repetitive=True)])
    assert [(p.kind, p.chosen_ids, p.rejected_ids) for p in pairs] == [("consistency", (1,), (2,))]


def test_wrong_attempts_alone_are_corrected():
    correct = lambda attempt: (*attempt.ids, 7, 8)  # noqa: E731
    rows = [judged([3], False, cut=True), judged([4], False)]
    (pair,) = build_pairs(rows, correct=correct)
    assert (pair.kind, pair.chosen_ids, pair.rejected_ids) == ("reflective", (4, 7, 8), (4,))
    assert build_pairs(rows) == [] and build_pairs(rows, kinds=("accuracy",), correct=correct) == []
    assert build_pairs(rows, correct=lambda attempt: None) == []
    # One right attempt that is unsound: there is nothing sound to choose, and not all are wrong.
    assert build_pairs([*rows, judged([5], True, consistent=False)], correct=correct) == []


def test_cut_attempts_are_not_chosen_and_limits_hold():
    rows = [judged([1, 1, 1], True), judged([2], True), judged([9] * 5, True, cut=True), judged([3], False)]
    assert build_pairs(rows)[0].chosen_ids == (1, 1, 1)
    assert build_pairs(rows, max_tokens=2)[0].chosen_ids == (2,)


def test_solved_prompts_have_every_attempt_right():
    rows = [
        judged([1], True, prompt=4),
        judged([2], True, prompt=4),
        judged([1], True, prompt=2),
        judged([1], False, prompt=2),
    ]
    assert solved_prompts(rows) == [4]


ROWS = st.lists(
    st.builds(
        judged,
        st.lists(st.integers(0, 2), min_size=1, max_size=3),
        st.booleans(),
        prompt=st.integers(0, 3),
        consistent=st.booleans(),
        repetitive=st.booleans(),
        cut=st.booleans(),
    ),
    max_size=20,
)


@given(ROWS)
def test_for_any_attempts(rows):
    pairs = build_pairs(rows, correct=lambda attempt: (*attempt.ids, 7))
    assert all(pair.chosen_ids != pair.rejected_ids for pair in pairs)
    kinds = [(pair.prompt_id, pair.kind) for pair in pairs]
    assert len(kinds) == len(set(kinds))  # one of a kind per prompt
    for pair in pairs:
        own = [(a, v) for a, v in rows if a.prompt_id == pair.prompt_id]
        chosen = [v for a, v in own if a.ids == pair.chosen_ids and v.is_sound and not a.is_cut]
        assert chosen or pair.kind == "reflective"
        if pair.kind == "accuracy":
            assert any(a.ids == pair.rejected_ids and not v.is_correct for a, v in own)
        if pair.kind == "reflective":
            assert not any(v.is_correct for _, v in own)
