"""Samplers in Ray actors: the same completions as in process, whoever dies meanwhile."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import settings
from torch import nn

from gspo.placement.config import PlacementConfig
from gspo.placement.samplers import RaySamplers, packed, unpack
from gspo.samplers.base import Closes, SampleRequest, SamplerLost, SamplesEach, TakesSnapshots
from gspo.samplers.in_process import InProcess
from gspo.sampling import Sampling
from gspo.training.parts import build

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def placement(**changes: Any) -> PlacementConfig:
    return PlacementConfig(**{"on": "local", "sampler_cpus": 0.5, "deadline": 120.0, **changes})


@pytest.fixture
def samplers() -> Iterator[Callable[[int], tuple[InProcess, RaySamplers, Any]]]:
    """(the sampler in this process, the same in Ray's, the policy whose weights both have)."""
    made: list[RaySamplers] = []

    def make(number: int) -> tuple[InProcess, RaySamplers, Any]:
        where = [("placement.on", "local"), ("placement.samplers", number), ("placement.sampler_cpus", 0.5)]
        parts = build(settings(Path("nowhere"), *where), report=lambda line: None)
        assert isinstance(parts.sampler, RaySamplers)
        made.append(parts.sampler)
        here = InProcess(parts.policy.network, parts.renderer.stop_ids, parts.renderer.pad_id)
        return here, parts.sampler, parts.policy

    yield make
    for sampler in made:
        sampler.close()


def wave(n: int = 4, count: int = 5, tokens: int = 6, step: int = 0) -> list[SampleRequest]:
    return [
        SampleRequest(
            prompt_ids=(5, 6, 7 + i % 5),
            n=n,
            seed=0,
            step=step,
            prompt_id=i,
            sampling=Sampling(max_completion_tokens=tokens),
        )
        for i in range(count)
    ]


def tokens(groups: Sequence[Sequence[Any]]) -> list[tuple[int, ...]]:
    return [completion.ids for group in groups for completion in group]


def moved(policy: Any, seed: int) -> None:
    with torch.no_grad():
        for parameter in policy.network.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_survive_being_packed(dtype):
    here, there = nn.Linear(3, 5), nn.Linear(3, 5).to(dtype)
    unpack(packed(here, [dtype, dtype]), there)
    assert torch.equal(there.weight, here.weight.to(dtype)) and torch.equal(there.bias, here.bias.to(dtype))


def test_one_actor_is_the_sampler_in_process_to_the_bit_and_takes_new_weights_after_a_restart(samplers):
    here, there, policy = samplers(1)
    assert isinstance(there, SamplesEach | TakesSnapshots | Closes) and there.scores == here.scores
    there.sync_weights(policy, 0)
    here.sync_weights(None, 0)
    first = there.sample(wave())
    assert first == here.sample(wave()) and first == there.sample(wave())
    assert there.sample(wave(step=1)) != first
    os.kill(there.pids()[0], signal.SIGKILL)
    moved(policy, 1)
    assert there.sample(wave()) == first  # a new process, with the weights that the sampler was given
    there.sync_weights(policy, 4)
    here.sync_weights(None, 4)
    os.kill(there.pids()[0], signal.SIGKILL)
    new = there.sample(wave())
    assert new == here.sample(wave()) and tokens(new) != tokens(first)
    assert {completion.policy_version for group in new for completion in group} == {4}


def test_a_snapshot_is_of_its_moment(samplers):
    here, there, policy = samplers(1)
    there.sync_weights(policy, 0)
    here.sync_weights(None, 3)
    want = here.sample(wave())
    put = there.snapshot(policy, 3)
    moved(policy, 2)
    assert tokens(there.sample(wave())) == tokens(want)
    put()
    assert there.sample(wave()) == want


def test_two_actors_share_a_wave_by_whole_groups_and_both_may_die_in_it(samplers):
    here, there, policy = samplers(2)
    there.sync_weights(policy, 0)
    here.sync_weights(None, 0)
    want, first = here.sample(wave()), there.sample(wave())
    assert tokens(first) == tokens(want)  # other rows beside them: equal up to rounding
    for group, same in zip(first, want, strict=True):
        for completion, known in zip(group, same, strict=True):
            assert completion.logprobs == pytest.approx(known.logprobs, abs=1e-5)
    long = wave(n=64, count=12, tokens=60)
    undisturbed = there.sample(long)
    pids = there.pids()
    arriving = there.sample_each(long)
    found = dict([next(arriving)])
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for number, group in arriving:
        assert number not in found
        found[number] = group
    assert [found[i] for i in range(len(long))] == undisturbed
    assert set(there.pids()).isdisjoint(pids)


class Broken:
    """A sampler whose process ends, hangs, or is wrong, at its first request."""

    scores = "exact"

    def __init__(self, how: str) -> None:
        self.how = how

    def sync_weights(self, policy: object, version: int) -> None: ...
    def sample(self, requests: Sequence[SampleRequest]) -> None: ...
    def sample_each(self, requests: Sequence[SampleRequest]) -> Iterator[Any]:
        if self.how == "ends":
            os._exit(9)
        if self.how == "hangs":
            time.sleep(1000)
        raise RuntimeError("no such token")
        yield


@pytest.mark.parametrize(
    ("how", "error", "line", "changes"),
    [
        (
            "ends",
            SamplerLost,
            "sampler actor 0 of 1 ended 2 times in a row under the same prompts .*lower sampler_rows",
            {},
        ),
        (
            "hangs",
            SamplerLost,
            r"waited 15 s \(placement.deadline\) for a group from sampler actor 0",
            {"deadline": 15.0},
        ),
        ("is wrong", ValueError, "sampler actor 0 of 1: RuntimeError: no such token", {}),
    ],
)
def test_what_cannot_be_survived_is_one_line(how, error, line, changes):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(__import__(__name__))
    model = nn.Linear(1, 1)
    sampler = RaySamplers(lambda copied, how=how: Broken(how), model, placement(restarts=1, **changes))
    try:
        sampler.sync_weights(SimpleNamespace(network=SimpleNamespace(model=model)), 0)
        began = time.monotonic()
        with pytest.raises(error, match=line) as raised:
            sampler.sample(wave())
        assert "\n" not in str(raised.value) and time.monotonic() - began < 100
    finally:
        sampler.close()
