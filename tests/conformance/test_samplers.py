"""The laws of a sampler."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import VOCABULARY, network

from gspo.functional import _step
from gspo.policies import TokenPayload, TokenScorer
from gspo.samplers import FakeSampler, InProcess, SampleRequest
from gspo.samplers.streams import stream_keys, uniforms
from gspo.sampling import Sampling, draw

STOP = 1
SAMPLINGS = (
    Sampling(max_completion_tokens=9),
    Sampling(temperature=0.6, max_completion_tokens=9),
    Sampling(top_k=4, max_completion_tokens=9),
    Sampling(top_p=0.6, temperature=1.3, max_completion_tokens=9),
)


def requests(sampling, seed=0, n=4, step=0):
    lengths = (3, 1, 5, 3)
    draw_ids = np.random.default_rng(7)
    return [
        SampleRequest(
            prompt_ids=tuple(int(i) for i in draw_ids.integers(2, VOCABULARY, length)),
            n=n,
            seed=seed,
            step=step,
            prompt_id=p,
            sampling=sampling,
        )
        for p, length in enumerate(lengths)
    ]


def samplers():
    net = network(dtype=torch.float32)
    return {
        "in-process": InProcess(net, [STOP], 0),
        "in-process, small blocks": InProcess(net, [STOP], 0, max_rows=8),
        "fake": FakeSampler(lambda request, i: [5] * i + [STOP], STOP),
    }


@pytest.mark.parametrize("name", samplers())
def test_shape_of_what_comes_back(name):
    """n completions per request in order; the stop token is inside; lengths, log-probs and reasons agree."""
    for sampling in SAMPLINGS:
        wave = requests(sampling)
        for request, group in zip(wave, samplers()[name].sample(wave), strict=True):
            assert len(group) == request.n
            for c in group:
                assert len(c.ids) == len(c.logprobs) and 1 <= len(c.ids) <= sampling.max_completion_tokens
                assert (c.finish_reason == "stop") == (c.ids[-1] == STOP)
                assert STOP not in c.ids[:-1]
                if c.finish_reason == "length":
                    assert len(c.ids) == sampling.max_completion_tokens


@pytest.mark.parametrize("name", samplers())
def test_same_counters_same_tokens(name):
    sampler = samplers()[name]
    assert sampler.sample(requests(SAMPLINGS[0])) == sampler.sample(requests(SAMPLINGS[0]))


def test_other_counters_other_tokens():
    sampler = samplers()["in-process"]
    base = sampler.sample(requests(SAMPLINGS[0]))
    assert sampler.sample(requests(SAMPLINGS[0], seed=1)) != base
    assert sampler.sample(requests(SAMPLINGS[0], step=1)) != base
    ids = [c.ids for c in base[0]]
    assert len(set(ids)) > 1


@pytest.mark.parametrize("name", samplers())
def test_every_completion_carries_the_synced_version(name):
    sampler = samplers()[name]
    sampler.sync_weights(None, 17)
    assert {c.policy_version for group in sampler.sample(requests(SAMPLINGS[0])) for c in group} == {17}


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_rescoring_reproduces_the_log_probs(sampling):
    """What training scores is what was sampled from: temperature, top-k and top-p included."""
    net = network(dtype=torch.float32)
    wave = requests(sampling, n=6)
    rows = [(r.prompt_ids, c) for r, g in zip(wave, InProcess(net, [STOP], 0).sample(wave), strict=True) for c in g]
    width = max(len(c.ids) for _, c in rows)
    mask = torch.tensor([[u < len(c.ids) for u in range(width)] for _, c in rows])
    said = torch.tensor([list(c.logprobs) + [0.0] * (width - len(c.ids)) for _, c in rows])
    step = _step(mask, None, said, None, None, None, None, None)
    step = replace(step, payload=TokenPayload(tuple(p for p, _ in rows), tuple(c.ids for _, c in rows)))
    scored = TokenScorer(network=net, scoring=sampling, micro_batch_tokens=10**6).logprobs(step).logprobs
    torch.testing.assert_close(scored, said, rtol=0, atol=2e-5)


def test_rescoring_at_another_temperature_is_caught():
    """The planted defect of the law above."""
    net = network(dtype=torch.float32)
    (request, *_) = requests(SAMPLINGS[1])
    (completion, *_) = InProcess(net, [STOP], 0).sample([request])[0]
    step = _step(torch.ones(1, len(completion.ids)).bool(), None, None, None, None, None, None, None)
    step = replace(step, payload=TokenPayload((request.prompt_ids,), (completion.ids,)))
    scored = TokenScorer(network=net, scoring=Sampling(), micro_batch_tokens=99).logprobs(step).logprobs[0]
    assert (scored - torch.tensor(completion.logprobs)).abs().max() > 1e-3


def test_composition_changes_nothing_but_rounding():
    """A prompt sampled alone says what it says beside others (ragged prompts, finished rows leaving)."""
    net = network()
    sampler = InProcess(net, [STOP], 0)
    wave = requests(SAMPLINGS[0], n=3)
    together = sampler.sample(wave)
    for request, group in zip(wave, together, strict=True):
        (alone,) = sampler.sample([request])
        assert [c.ids for c in alone] == [c.ids for c in group]
        for a, b in zip(alone, group, strict=True):
            assert np.allclose(a.logprobs, b.logprobs, atol=1e-5)


def test_order_of_requests_does_not_matter():
    sampler = InProcess(network(dtype=torch.float32), [STOP], 0, max_rows=8)
    wave = requests(SAMPLINGS[0])
    assert sampler.sample(wave[::-1])[::-1] == sampler.sample(wave)


def test_drawn_frequencies_are_the_probabilities():
    """Inversion over many streams: chi-square of 40,000 draws against softmax, top-k tokens alone."""
    logits = torch.tensor([[1.0, 0.0, 2.0, -1.0, 0.5, 1.9]]).expand(40_000, -1)
    sampling = Sampling(temperature=0.7, top_k=4)
    keys = stream_keys([(0, 0, 0, i) for i in range(len(logits))])
    token, logprob = draw(logits, sampling, uniforms(keys, 0))
    p = torch.where(torch.tensor([True, False, True, False, True, True]), logits[0] / 0.7, -torch.inf).softmax(0)
    counts = torch.bincount(token, minlength=6).double()
    assert counts[~(p > 0)].sum() == 0
    expected = p[p > 0].double() * len(logits)
    assert ((counts[p > 0] - expected).square() / expected).sum() < 16.3  # 3 degrees of freedom, p = 0.001
    torch.testing.assert_close(logprob, p.log()[token])


def test_streams_are_uniform_and_distinct():
    keys = stream_keys([(s, t, p, i) for s in range(4) for t in range(8) for p in range(16) for i in range(16)])
    assert len(np.unique(keys)) == len(keys)
    values = np.concatenate([uniforms(keys, position) for position in range(4)])
    assert values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 0.5) < 5e-3 and abs(values.var() - 1 / 12) < 2e-3
    assert abs(np.corrcoef(uniforms(keys, 0), uniforms(keys, 1))[0, 1]) < 0.02


def test_the_last_uniform_never_picks_an_impossible_token():
    logits = torch.tensor([[0.0, 5.0, -torch.inf, -torch.inf]])
    token, logprob = draw(logits, Sampling(), np.array([1 - 2.0**-53]))
    assert token.item() == 1 and torch.isfinite(logprob).all()
