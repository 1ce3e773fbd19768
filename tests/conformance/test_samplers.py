"""The laws of a sampler."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from fake_servers import FakeServer, FakeSGLang, FakeVLLM
from small_models import VOCABULARY, network

from gspo.functional import _step
from gspo.models import save_model
from gspo.policies import Payload, TokenScorer
from gspo.samplers import FakeSampler, InProcess, SampleRequest
from gspo.samplers.http import Link
from gspo.samplers.servers import Servers
from gspo.samplers.sglang import SGLang
from gspo.samplers.streams import stream_keys, uniforms
from gspo.samplers.vllm import VLLM
from gspo.samplers.weight_store import WeightStore
from gspo.sampling import Sampling, draw, sampling_logits

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
            prompt_ids=tuple(int(i) for i in draw_ids.integers(0, VOCABULARY, length)),  # pad and stop ids included
            n=n,
            seed=seed,
            step=step,
            prompt_id=p,
            sampling=sampling,
        )
        for p, length in enumerate(lengths)
    ]


def copying(net, max_rows=512):
    """The sampler as it is for models whose attention cannot be replaced."""
    sampler = InProcess(net, [STOP], 0, max_rows)
    sampler._shares_prompts = False
    return sampler


@cache
def served(dialect, engine):
    """On a server that was started with other weights, for as long as the tests last."""
    net = network(dtype=torch.float32)
    server = FakeServer(engine(network(dtype=torch.float32, seed=1), [STOP]))
    store = WeightStore("", lambda policy, folder: save_model(net.model, folder))
    sampler = Servers([Link(server.url, dialect.name, 30.0)], dialect, store, stop_ids=[STOP], rows=9)
    sampler.sync_weights(None, 0)
    return sampler


def samplers():
    net = network(dtype=torch.float32)
    return {
        "in-process": InProcess(net, [STOP], 0),
        "in-process, rows join midway": InProcess(net, [STOP], 0, max_rows=5),
        "in-process, fewer rows than a group": InProcess(net, [STOP], 0, max_rows=3),
        "in-process, copied cache": copying(net),
        "in-process, copied cache, small blocks": copying(net, max_rows=8),
        "vLLM": served(VLLM(), FakeVLLM),
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


FAMILIES = ("qwen3-tied", "qwen2", "llama", "gemma2-softcap", "gemma2-capped-sliding", "mistral-sliding", "gpt2")


@pytest.mark.parametrize(
    ("family", "sampling"),
    [("qwen3-tied", s) for s in SAMPLINGS] + [(family, SAMPLINGS[1]) for family in FAMILIES[1:]],
)
@pytest.mark.parametrize("make", [lambda net: InProcess(net, [STOP], 0, max_rows=7), copying])
def test_rescoring_reproduces_the_log_probs(make, family, sampling):
    """What training scores is what was sampled from: temperature, top-k and top-p included."""
    net = network(family, dtype=torch.float32)
    assert_rescored(net, make(net), sampling)


@pytest.mark.parametrize(("dialect", "engine"), [(VLLM(), FakeVLLM), (SGLang(), FakeSGLang)])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_rescoring_reproduces_what_servers_say(dialect, engine, sampling):
    if dialect.name == "SGLang" and sampling.truncates:
        with pytest.raises(ValueError, match="does not give log-probs under"):
            served(dialect, engine).sample(requests(sampling))
        return
    assert_rescored(network(dtype=torch.float32), served(dialect, engine), sampling)


def assert_rescored(net, sampler, sampling):
    wave = requests(sampling, n=6)
    rows = [(r.prompt_ids, c) for r, g in zip(wave, sampler.sample(wave), strict=True) for c in g]
    width = max(len(c.ids) for _, c in rows)
    mask = torch.tensor([[u < len(c.ids) for u in range(width)] for _, c in rows])
    said = torch.tensor([list(c.logprobs) + [0.0] * (width - len(c.ids)) for _, c in rows])
    step = _step(mask, None, said, None, None, None, None, None)
    step = replace(step, payload=Payload(tuple(p for p, _ in rows), tuple(c.ids for _, c in rows)))
    scored = TokenScorer(network=net, scoring=sampling, micro_batch_tokens=10**6).logprobs(step).logprobs
    torch.testing.assert_close(scored, said, rtol=0, atol=2e-5)


def test_rescoring_at_another_temperature_is_caught():
    """The planted defect of the law above."""
    net = network(dtype=torch.float32)
    (request, *_) = requests(SAMPLINGS[1])
    (completion, *_) = InProcess(net, [STOP], 0).sample([request])[0]
    step = _step(torch.ones(1, len(completion.ids)).bool(), None, None, None, None, None, None, None)
    step = replace(step, payload=Payload((request.prompt_ids,), (completion.ids,)))
    scored = TokenScorer(network=net, scoring=Sampling(), micro_batch_tokens=99).logprobs(step).logprobs[0]
    assert (scored - torch.tensor(completion.logprobs)).abs().max() > 1e-3


@pytest.mark.parametrize("max_rows", (512, 3))
def test_composition_changes_nothing_but_rounding(max_rows):
    """A prompt sampled alone says what it says beside others (ragged prompts, rows leaving and joining)."""
    net = network()
    sampler = InProcess(net, [STOP], 0, max_rows)
    wave = requests(SAMPLINGS[0], n=3)
    together = sampler.sample(wave)
    for request, group in zip(wave, together, strict=True):
        (alone,) = sampler.sample([request])
        assert [c.ids for c in alone] == [c.ids for c in group]
        for a, b in zip(alone, group, strict=True):
            assert np.allclose(a.logprobs, b.logprobs, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_rows", (512, 5))
def test_both_decoders_say_the_same(family, max_rows):
    """Tokens are equal, whoever joins and leaves; in float64, which transformers' eager attention only half knows."""
    net = network(family, dtype=torch.float32 if "cap" in family else torch.float64)
    wave = requests(Sampling(max_completion_tokens=24), n=5)
    ours, theirs = InProcess(net, [STOP], 0, max_rows), copying(net)
    assert ours._shares_prompts
    for a, b in zip(ours.sample(wave), theirs.sample(wave), strict=True):
        assert [c.ids for c in a] == [c.ids for c in b]
        for x, y in zip(a, b, strict=True):
            assert np.allclose(x.logprobs, y.logprobs, rtol=0, atol=1e-5 if "cap" in family else 1e-6)


@pytest.mark.parametrize("name", [name for name in samplers() if name != "fake"])
def test_order_of_requests_does_not_matter(name):
    """Bitwise: in float32, with two settings in the wave."""
    sampler = samplers()[name]
    wave = requests(SAMPLINGS[0])
    wave[1] = replace(wave[1], sampling=SAMPLINGS[2])
    assert sampler.sample(wave[::-1])[::-1] == sampler.sample(wave)


@pytest.mark.parametrize("name", [name for name in samplers() if name != "fake"])
def test_each_group_comes_once(name):
    """As `sample` says it."""
    sampler = samplers()[name]
    wave = [*requests(SAMPLINGS[0]), replace(requests(SAMPLINGS[0])[0], n=0, prompt_id=9)]
    came = list(sampler.sample_each(wave))
    assert sorted(i for i, _ in came) == list(range(len(wave)))
    assert [group for _, group in sorted(came)] == sampler.sample(wave)


@pytest.mark.parametrize("name", [name for name in samplers() if name.startswith("in-process")])
def test_each_group_comes_when_it_has_ended(name):
    """With few rows the first comes before the last has begun."""
    sampler, wave = samplers()[name], requests(SAMPLINGS[0])
    passes = []
    sampler.network.body.register_forward_pre_hook(lambda *_: passes.append(1))
    counts = [len(passes) for _ in sampler.sample_each(wave)]
    if sampler.max_rows < 16:
        assert counts[-1] > counts[1], "all groups came at the end"


@pytest.mark.parametrize("make", [lambda net: InProcess(net, [STOP], 0, max_rows=5), copying])
def test_each_token_is_the_draw_of_its_stream_at_its_position(make):
    """Completion i of a prompt, drawn by hand: (seed, step, prompt id, i) and the position give the uniform."""
    net = network()
    wave = requests(SAMPLINGS[1], seed=3, n=3, step=2)
    for request, group in zip(wave, make(net).sample(wave), strict=True):
        for i, completion in enumerate(group):
            key = stream_keys([(3, 2, request.prompt_id, i)])
            for t, token in enumerate(completion.ids):
                with torch.no_grad():
                    logits = net.head(net.hidden(torch.tensor([request.prompt_ids + completion.ids[:t]]))[:, -1])
                assert draw(logits, request.sampling, uniforms(key, t))[0].item() == token


@pytest.mark.parametrize("make", [lambda net: InProcess(net, [STOP], 0, max_rows=5), lambda net: copying(net, 5)])
def test_no_more_rows_than_asked_for(make):
    sampler, rows = make(network(dtype=torch.float32)), []
    watch = lambda _, arguments, named: rows.append(len(named["input_ids"]))  # noqa: E731
    sampler.network.body.register_forward_pre_hook(watch, with_kwargs=True)
    sampler.sample(requests(SAMPLINGS[0]))
    assert max(rows) == 5


def test_grad_mode_is_the_callers_between_groups():
    for _ in samplers()["in-process, rows join midway"].sample_each(requests(SAMPLINGS[0])):
        assert torch.is_grad_enabled()


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


@pytest.mark.parametrize("vocabulary", (4, 512, 700, 1024))
def test_no_uniform_picks_an_impossible_token(vocabulary):
    """The first and the last, with nothing possible at either end of the vocabulary."""
    logits = torch.full((2, vocabulary), -torch.inf)
    logits[:, 1:3] = torch.tensor([0.0, 5.0])
    token, logprob = draw(logits, Sampling(), np.array([0.0, 1 - 2.0**-53]))
    assert token.tolist() == [1, 2] and torch.isfinite(logprob).all()
    logits = torch.full((1, vocabulary), -torch.inf)
    logits[:, [0, -1]] = 0.0
    assert [draw(logits, Sampling(), np.array([u]))[0].item() for u in (0.0, 0.49, 0.51, 1 - 2.0**-53)] == [
        0, 0, vocabulary - 1, vocabulary - 1
    ]  # fmt: skip


@pytest.mark.parametrize("vocabulary", (29, 512, 700, 1024, 3000))
@pytest.mark.parametrize("sampling", (*SAMPLINGS, Sampling(temperature=0)))
def test_draw_inverts_the_cumulative_distribution(vocabulary, sampling):
    make = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(50, vocabulary, generator=make, dtype=torch.float64)
    uniform = np.random.default_rng(0).random(50)
    token, logprob = draw(logits, sampling, uniform)
    log_p = sampling_logits(logits, sampling).log_softmax(dim=-1)
    expected = (log_p.exp().cumsum(dim=-1) <= torch.from_numpy(uniform)[:, None]).sum(dim=-1)
    assert token.tolist() == (logits.argmax(dim=-1) if sampling.temperature == 0 else expected).tolist()
    torch.testing.assert_close(logprob, log_p.gather(1, token[:, None])[:, 0])
    assert logprob.dtype == torch.float64
