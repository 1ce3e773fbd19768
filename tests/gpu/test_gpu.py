"""What runs on a CUDA device only: `pytest -m gpu`. The same laws as on the CPU, on what the CPU cannot run."""

from dataclasses import replace

import pytest
import torch
from small_models import network, ragged_step
from test_policies import WIDE, gradients
from test_samplers import requests

from gspo.policies import TokenScorer, TrainedPolicy
from gspo.policies.layouts import lay_out
from gspo.policies.master import AdamW
from gspo.policies.tree_attention import FlexRows
from gspo.sampling import Sampling

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def on_device(dtype=torch.float32):
    net = network(dtype=dtype)
    net.model.to("cuda")
    return net


def step_on_device(seed=1):
    step = ragged_step(seed, dtype=torch.float32)
    moved = {name: value.to("cuda") for name, value in vars(step).items() if isinstance(value, torch.Tensor)}
    return replace(step, **moved)


@pytest.mark.parametrize("layout", ["packed", "shared_prefix", "auto"])
def test_layouts_equal_padded_rows(layout):
    step = step_on_device()
    found = []
    for name in ("padded", layout):
        net = on_device()
        policy = TrainedPolicy(
            TokenScorer(network=net, scoring=Sampling(), micro_batch_tokens=10**6, layout=name), AdamW()
        )
        weight = [WIDE.weights(step, WIDE.counts(step))]
        scored = policy.logprobs(step).logprobs
        found.append((scored, gradients(net, lambda p=policy, w=weight: p.forward_backward(step, w, [WIDE]))))
    (padded, want), (packed, got) = found
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-5)
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=1e-4 * gradient.abs().max().item())


def test_packed_rows_go_through_flex_attention():
    step = step_on_device()
    net = on_device()
    layout = lay_out("shared_prefix", step.payload.prompt, step.payload.completion, 0, net.device, net.shape)
    assert isinstance(layout.attention, FlexRows)


def test_sampled_log_probs_are_the_policys():
    from gspo.samplers import InProcess

    net = on_device()
    wave = requests(Sampling(max_completion_tokens=9))
    groups = InProcess(net, [1], 0).sample(wave)
    assert groups == InProcess(net, [1], 0).sample(wave)
    assert {c.finish_reason for group in groups for c in group} <= {"stop", "length"}
