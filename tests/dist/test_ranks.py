"""What many ranks need no second process for."""

import pytest
from hypothesis import given
from hypothesis import strategies as some
from runs import settings
from small_models import step_of

from gspo.dist.building import loading
from gspo.dist.config import RanksConfig
from gspo.dist.policy import shares
from gspo.dist.ranks import ALONE, Team, ranks_of
from gspo.dist.sampler import LoneSampler, SharedSampler
from gspo.dist.shards import share_of
from gspo.samplers.base import SamplesEach
from gspo.training.overlap import Ahead


@given(some.lists(some.tuples(some.integers(0, 5), some.integers(1, 9)), min_size=1, max_size=20), some.integers(1, 4))
def test_shares_keep_groups_whole_and_lose_no_row(rows, size):
    step = step_of([(group, (2, 3), (1,) * length) for group, length in rows])
    found = shares(step, size)
    assert sorted(row for share in found for row in share) == list(range(len(rows)))
    owner = {row: rank for rank, share in enumerate(found) for row in share}
    for group in {group for group, _ in rows}:
        assert len({owner[row] for row, (own, _) in enumerate(rows) if own == group}) == 1
    assert found == shares(step, size)


def test_shares_are_balanced_by_tokens():
    step = step_of([(group, (2,) * 10, (1,) * length) for group, length in enumerate((60, 10, 10, 10))])
    assert shares(step, 2) == [[0], [1, 2, 3]]


@given(some.integers(0, 30), some.integers(1, 7))
def test_shares_of_requests_follow_each_other(number, size):
    parts = [share_of(range(number), rank, size) for rank in range(size)]
    assert [value for part in parts for value in part] == list(range(number))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_ranks_are_those_of_torchrun():
    assert ranks_of({"RANK": "0"}) is ALONE
    found = ranks_of({"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "2"})
    assert (found.rank, found.size, found.local_size, found.is_first) == (3, 4, 2, False)


@pytest.mark.parametrize(
    "wrong, line",
    [
        ({"tensor_parallel": 2, "sharding": "none"}, r"ranks.tensor_parallel = 2 goes with .* use ranks.sharding"),
        ({"context_parallel": 4, "sharding": "none"}, r"ranks.context_parallel = 4 goes with .* use ranks.sharding"),
        ({"sharding": "none", "cpu_offload": True}, r'"none" has none; use "full"'),
        ({"deadline": 0.5}, "ranks.deadline is 0.5; it must be at least 1"),
    ],
)
def test_what_ranks_cannot_do_is_refused_by_name(wrong, line):
    with pytest.raises(ValueError, match=line):
        RanksConfig(**wrong)


def test_devices_of_many_ranks():
    for device, line in (("cuda:1", "one GPU for all ranks"), ("mps", "no collectives")):
        with pytest.raises(ValueError, match=line):
            Team(0, 2).open(RanksConfig(), device)


def test_a_sampler_with_weights_of_its_own_is_that_of_rank_0(tmp_path):
    dtype = ("policy", {"name": "causal_lm", "sampler_dtype": "bfloat16"})
    config = settings(tmp_path / "run", ("sampler", "process"), ("max_policy_lag", 2), ("device", "cuda"), dtype)
    assert loading(config, ALONE) is config
    first, other = loading(config, Team(0, 2)), loading(config, Team(1, 2))
    assert (first.device, first.sampler.device) == ("cpu", "cuda")  # not where the shards come from
    assert (other.sampler.name, other.max_policy_lag, other.policy.sampler_dtype) == ("in_process", 0, "auto")
    whole = settings(tmp_path / "run", ("sampler", "process"), ("ranks.sharding", "none"))
    assert loading(whole, Team(0, 2)) is whole


def test_weights_that_train_cannot_be_sampled_from_while_ranks_train():
    with pytest.raises(ValueError, match="SharedSampler samples from these very weights"):
        Ahead(None, SharedSampler(None, Team(0, 2)), None, max_lag=1, until=1, ranks=Team(0, 2))


def test_groups_of_a_sampler_apart_are_handed_over_as_they_end():
    """So that slow rewards of one group are given while others are sampled, as in one process."""

    class Each:
        scores = "exact"

        def sample_each(self, requests):
            yield from ((i, []) for i in reversed(range(len(requests))))

    lone = LoneSampler(Each(), ALONE)
    assert isinstance(lone, SamplesEach) and [i for i, _ in lone.sample_each([None] * 3)] == [2, 1, 0]
