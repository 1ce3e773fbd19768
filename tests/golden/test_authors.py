"""Ours against what the authors' own code computes on the same tensors (made by make_authors.py, which has commits).

Where the two differ on purpose is in docs/parity.md, by how much in the tests below.
"""

import pytest
import torch
from parity_cases import (
    AUTHORS_ADVANTAGES,
    AUTHORS_LOSSES,
    AUTHORS_PASS_AT_K,
    LENGTH,
    RECORDED,
    assert_equal,
    close,
    inputs,
    number,
    ours,
    scored,
    theirs,
)

import gspo

GOLDEN = RECORDED["authors"]["authors"]


def found(case):
    _, author, name = case.recorded.split("/")
    return GOLDEN[author]["cases"][name]


@pytest.mark.parametrize(
    ("case", "key"), [pytest.param(c, key, id=f"{c} {key}") for c in AUTHORS_LOSSES for key in found(c)["results"]]
)
def test_losses_equal_the_authors(case, key):
    x, given = inputs("authors", key), found(case)
    levels = given["settings"].get("levels")
    rewards = x.get("rewards") if levels is None else -number(levels)  # level 1 is the best
    group = x[case.group].long() if case.group else None
    assert_equal(ours(case.ours, x, group=group, rewards=rewards), theirs(given["results"][key]), case)


@pytest.mark.parametrize("case", AUTHORS_ADVANTAGES, ids=str)
def test_advantages_equal_the_authors(case):
    rewards, group, length = scored("authors", "complete")
    expected = number(found(case)["advantage"])
    got = gspo.advantages(case.ours, rewards, group, length=length)
    if expected.ndim == 2:
        got = got[:, None] * (torch.arange(LENGTH)[None] < length[:, None])
    close(got, expected, case.rtol)


@pytest.mark.parametrize("case", AUTHORS_PASS_AT_K, ids=str)
def test_pass_at_k_equals_the_authors(case):
    """Every number of right completions in groups of 4, 6 and 8."""
    checked = 0
    for given in GOLDEN["pass_at_k"]["cases"].values():
        if given["settings"]["k"] == case.ours.k:
            rewards = number(given["rewards"])
            close(gspo.advantages(case.ours, rewards, torch.zeros(len(rewards), dtype=torch.long)),
                  number(given["advantage"]), case.rtol)  # fmt: skip
            checked += 1
    assert checked >= 5


def test_the_skywork_controller_is_strict_and_starts_open():
    """Theirs moves up where the entropy is below the target, ours (TRL's) also where it is equal; theirs applies the
    first coefficient before any entropy was seen, ours none. Elsewhere the same, after each update."""
    given = GOLDEN["skywork"]["cases"]["controller"]
    settings = given["settings"]
    term = gspo.AdaptiveEntropy(
        coef=settings["init_ent_coef"], delta=settings["delta_ent_coef"], target=settings["target_ent"],
        coef_min=settings["min_ent_coef"], coef_max=settings["max_ent_coef"],
    )  # fmt: skip
    state, differing = term.init(), []
    for i, update in enumerate(given["updates"]):
        applied = term.at(state).coef
        if applied != pytest.approx(update["coefficient"] * update["applies"]):
            differing.append(i)
        state = term.update([update["coefficient"], state[1]], {"entropy": update["entropy"], "units": 1})
        is_at_target = update["entropy"] == settings["target_ent"]
        assert (state[0] == pytest.approx(update["after"])) != is_at_target
    at_target = [i for i, update in enumerate(given["updates"]) if update["entropy"] == settings["target_ent"]]
    assert differing == [0, *(i + 1 for i in at_target)]


def test_trpa_clamps_its_kl_where_ours_does_not():
    """Their k3 stops at 10 nats per token, which only a token e^2.6 times less likely than before can reach."""
    given = GOLDEN["trpa"]["cases"]["clamped_kl"]
    x, settings, expected = inputs("authors", "pairs"), given["settings"], theirs(given["results"]["pairs"])
    group, rewards = x["group_of_three"].long(), -number(settings["levels"])
    loss, gradient, _ = ours(gspo.TRPA(levels=(-1.0, -2.0)), x, group=group, rewards=rewards)
    u, mask = x["old_logprobs"] - x["logprobs"], x["mask"].bool()
    k3 = (torch.expm1(u) - u)[mask]
    assert (k3 > 10).any()
    close(loss - settings["kl_coef"] * (k3 - k3.clamp(max=10)).mean(), expected[0])
    slope = torch.where(mask & (torch.expm1(u) - u > 10), -torch.expm1(u), torch.zeros_like(u)) / mask.sum()
    close(gradient - settings["kl_coef"] * slope, expected[1])


def test_every_number_has_a_repository_and_a_commit():
    for author, given in GOLDEN.items():
        assert "/" in given["repository"] and len(given["commit"]) == 40 and given["file"], author
