"""The sampler's laws, and that it decodes as it says: blocks, confidence, streams."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from masked_models import MASK, STOP, VOCABULARY, network

from gspo.samplers import SampleRequest
from gspo.samplers.diffusion import BlockDiffusion, schedule
from gspo.samplers.streams import stream_keys, uniforms
from gspo.sampling import Sampling, draw

SAMPLINGS = (
    Sampling(max_completion_tokens=9),
    Sampling(temperature=0.6, max_completion_tokens=9),
    Sampling(top_k=4, max_completion_tokens=9),
    Sampling(top_p=0.6, temperature=1.3, max_completion_tokens=9),
    Sampling(temperature=0.0, max_completion_tokens=9),
)


def requests(sampling, seed=0, n=4, step=0):
    make = np.random.default_rng(7)
    return [
        SampleRequest(
            prompt_ids=tuple(int(i) for i in make.integers(0, VOCABULARY - 1, length)),
            n=n,
            seed=seed,
            step=step,
            prompt_id=p,
            sampling=sampling,
        )
        for p, length in enumerate((3, 1, 5, 3))
    ]


def sampler(net=None, **settings):
    return BlockDiffusion(net or network(), [STOP], **{"block": 4, **settings})


WAYS = ({}, {"until_eos": True}, {"denoising_steps": 5}, {"max_rows": 3}, {"block": 32})


@pytest.mark.parametrize("way", WAYS)
def test_shape_of_what_comes_back(way):
    for sampling in SAMPLINGS:
        wave = requests(sampling)
        for request, group in zip(wave, sampler(**way).sample(wave), strict=True):
            assert len(group) == request.n
            for c in group:
                assert len(c.ids) == len(c.logprobs) and MASK not in c.ids
                assert all(x <= 0 for x in c.logprobs)
                if way.get("until_eos"):
                    assert STOP not in c.ids[:-1] and (c.finish_reason == "stop") == (c.ids[-1] == STOP)
                    assert len(c.ids) == 9 or c.finish_reason == "stop"
                else:
                    assert len(c.ids) == 9 and (c.finish_reason == "stop") == (STOP in c.ids)


def test_an_end_is_where_the_whole_canvas_has_one():
    """Leaving early changes nothing before the end."""
    wave = requests(SAMPLINGS[0], n=12)
    pairs = zip(sampler().sample(wave), sampler(until_eos=True).sample(wave), strict=True)
    both = [(a, b) for whole, cut in pairs for a, b in zip(whole, cut, strict=True)]
    assert any(b.finish_reason == "stop" and len(b.ids) < 9 for _, b in both)
    for a, b in both:
        assert a.ids[: len(b.ids)] == b.ids and a.finish_reason == b.finish_reason


@pytest.mark.parametrize("way", WAYS)
def test_counters_name_the_tokens(way):
    """The same again; others under another seed or step; in another order of requests to the bit."""
    made = sampler(network(torch.float32), **way)
    wave = requests(SAMPLINGS[0])
    found = made.sample(wave)
    assert found == made.sample(wave) and made.sample(wave[::-1])[::-1] == found
    assert made.sample(requests(SAMPLINGS[0], seed=1)) != found != made.sample(requests(SAMPLINGS[0], step=1))
    assert len({c.ids for c in found[0]}) > 1
    mixed = [wave[0], replace(wave[1], sampling=SAMPLINGS[1]), replace(wave[3], limit=5)]
    assert made.sample(mixed[::-1])[::-1] == made.sample(mixed)
    assert all(len(c.ids) <= 5 for c in made.sample(mixed)[2])


@pytest.mark.parametrize("max_rows", (512, 3))
def test_composition_changes_nothing_but_rounding(max_rows):
    made, wave = sampler(max_rows=max_rows), requests(SAMPLINGS[0], n=3)
    for request, group in zip(wave, made.sample(wave), strict=True):
        (alone,) = made.sample([request])
        assert [c.ids for c in alone] == [c.ids for c in group]


def test_some_indices_of_a_group_are_those_of_the_whole():
    (request, *_) = requests(SAMPLINGS[0])
    whole = sampler().sample([request])[0]
    assert sampler().sample([replace(request, n=2, indices=(3, 1))])[0] == [whole[3], whole[1]]


def test_every_completion_carries_the_synced_version():
    made = sampler()
    made.sync_weights(None, 17)
    assert {c.policy_version for group in made.sample(requests(SAMPLINGS[0])) for c in group} == {17}
    assert made.scores == "none"


@pytest.mark.parametrize("logit_shift", (0, 1))
@pytest.mark.parametrize("steps", (0, 5))
@pytest.mark.parametrize("sampling", (SAMPLINGS[0], SAMPLINGS[1], SAMPLINGS[4]))
def test_equal_to_a_slow_reading(sampling, steps, logit_shift):
    """One completion by hand: candidates of the block, the surest kept, nothing taken back."""
    net = network(logit_shift=logit_shift)
    (request, *_) = requests(sampling, seed=3, n=2, step=2)
    for i, completion in enumerate(sampler(net, denoising_steps=steps).sample([request])[0]):
        key, start = stream_keys([(3, 2, 0, i)]), len(request.prompt_ids)
        ids = [*request.prompt_ids, *[MASK] * 9]
        forward = 0
        for begin, counts in schedule(9, 4, steps):
            for count in counts:
                with torch.no_grad():
                    logits = net.logits(torch.tensor([ids]))[0]
                logits[:, MASK] = -torch.inf
                candidates = []
                for at in range(start + begin, start + min(begin + 4, 9)):
                    if ids[at] == MASK:
                        u = uniforms(key, forward * len(ids) + at)
                        token = draw(logits[[at]], sampling, u)[0].item()
                        candidates.append((logits[at].softmax(-1)[token].item(), -at, token))
                for _, at, token in sorted(candidates, reverse=True)[:count]:
                    ids[-at] = token
                forward += 1
        assert tuple(ids[start:]) == completion.ids


def test_the_schedule_reveals_every_position_once():
    assert schedule(16, 8, 8) == [(0, [2, 2, 2, 2]), (8, [2, 2, 2, 2])]
    assert schedule(16, 32, 6) == [(0, [3, 3, 3, 3, 2, 2])]
    assert schedule(5, 2, 0) == [(0, [1, 1]), (2, [1, 1]), (4, [1])]
    assert schedule(9, 4, 2) == [(0, [4]), (4, [4]), (8, [1])]  # one each at least
    for length, block, steps in ((256, 32, 128), (17, 5, 9), (3, 1, 0), (7, 7, 100)):
        made = schedule(length, block, steps)
        assert sum(sum(counts) for _, counts in made) == length and min(min(counts) for _, counts in made) >= 1


def test_no_generator_is_kept_or_moved_and_grad_mode_is_the_callers():
    before = torch.get_rng_state()
    sampler().sample(requests(SAMPLINGS[0]))
    assert torch.equal(torch.get_rng_state(), before) and torch.is_grad_enabled()


def test_no_more_positions_than_the_model_knows():
    with pytest.raises(ValueError, match=r"have 63 positions and BertForMaskedLM knows 40: lower sampling.max_comp"):
        sampler().sample(requests(Sampling(max_completion_tokens=60))[:1])
