"""Packed sequences: every token sees just the tokens before it in its own sequence, and nothing stands twice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gspo.policies.prefixes import MIN_SHARED, pack
from gspo.policies.tree_attention import blocks_of

IDS = st.lists(st.integers(0, 2), max_size=14).map(tuple)
ROWS = st.lists(st.tuples(IDS.filter(len), st.lists(IDS, min_size=1, max_size=4)), min_size=1, max_size=5)


def seen_by_rule(packed):
    place = np.arange(len(packed))
    return (place[None, :] <= place[:, None]) & (place[:, None] < packed.end[None, :])


def seen_by_paths(packed):
    """Token by token, from the sequences themselves."""
    seen = np.zeros((len(packed), len(packed)), dtype=bool)
    for where in packed.where:
        for depth, q in enumerate(where):
            seen[q, where[: depth + 1]] = True
    return seen


@settings(max_examples=200, deadline=None)
@given(ROWS, st.sampled_from([None, 1, 3, 8]), st.integers(1, 6))
def test_every_token_sees_its_own_sequence_and_nothing_else(groups, min_shared, halve_above):
    prompts = [prompt for prompt, tails in groups for _ in tails]
    tails = [tail for _, tails in groups for tail in tails]
    packed = pack(prompts, tails, min_shared)
    for prompt, tail, where in zip(prompts, tails, packed.where, strict=True):
        assert tuple(packed.ids[where]) == prompt + tail
        assert packed.positions[where].tolist() == list(range(len(prompt + tail)))
    seen = seen_by_rule(packed)
    assert np.array_equal(seen, seen_by_paths(packed))
    covered = np.zeros_like(seen, dtype=int)
    for block in blocks_of(packed.end, halve_above):
        square = np.ones((block.q_stop - block.q, block.k_stop - block.k), dtype=int)
        covered[block.q : block.q_stop, block.k : block.k_stop] += np.tril(square) if block.is_causal else square
    assert np.array_equal(covered, seen.astype(int))  # each pair once
    if min_shared is None:
        assert len(packed) == sum(len(p) + len(t) for p, t in zip(prompts, tails, strict=True))


def test_the_example_of_the_docstring():
    packed = pack([(0,)] * 3, [(1, 2, 3), (1, 2, 4, 5), (1, 9)], 1)
    assert packed.ids.tolist() == [0, 1, 2, 3, 4, 5, 9]
    assert packed.end.tolist() == [7, 7, 6, 4, 6, 6, 7]
    assert packed.positions.tolist() == [0, 1, 2, 3, 3, 4, 2]


@pytest.mark.parametrize("common", [MIN_SHARED - 1, MIN_SHARED])
def test_prompts_that_begin_alike_share_when_it_is_long_enough(common):
    head = tuple(range(common))
    packed = pack([(*head, 20, 21), (*head, 30)], [(5, 6), (5, 6)], 1)
    apart = 2 * common + 3 + 4
    assert len(packed) == (apart if common < MIN_SHARED else apart - common)


def test_equal_completions_stand_once():
    assert len(pack([(1, 2)] * 3, [(3, 4, 5)] * 3, 1)) == 5
