"""gspo.loss against what TRL 1.16 itself computes on the same log-probs: value and gradient (made by make_trl.py).

Where the two differ on purpose, beside what a case here states:
- TRL divides by gradient accumulation and, for token means, by the tokens of the generation batch shared equally over
  its updates; ours divide by what the optimizer step really holds. With one micro-batch per update they coincide.
- TRL multiplies by the mask, so that NaN behind it spreads; ours selects.
- TRL's default with beta > 0 is the KL times the ratio (use_bias_correction_kl, DeepSeek-V3.2): our "unbiased". The
  plain k3 of ReferenceKL's default is TRL's with use_bias_correction_kl=False.
- TRL keeps the rows' dtype (these are float64 on both sides); ours raises half precision to float32.
"""

import json
from pathlib import Path

import pytest
import torch

import gspo

GOLDEN = json.loads(Path(__file__).with_name("trl_1_16.json").read_text())
MAX_LENGTH = GOLDEN["max_completion_length"]
CLOSE = {"rtol": 1e-12, "atol": 1e-14}

EQUAL = [
    ("gspo", gspo.GSPO()),
    ("gspo", gspo.GSPOToken()),
    ("gspo_wide", gspo.GSPO(clip_low=0.2, clip_high=0.2)),
    ("gspo_wide", gspo.GSPOToken(clip_low=0.2, clip_high=0.2)),
    ("grpo", gspo.GRPO()),
    ("grpo_clip_higher", gspo.GRPO(clip_high=0.28)),
    ("grpo_kl", (gspo.GRPO(), gspo.ReferenceKL(coef=0.04, estimator="k3"))),
    ("grpo_kl_default", (gspo.GRPO(), gspo.ReferenceKL(coef=0.04, estimator="unbiased"))),
    ("grpo_entropy", (gspo.GRPO(), gspo.EntropyBonus(coef=0.01))),
    ("dr_grpo", gspo.DrGRPO(max_length=MAX_LENGTH)),
    ("bnpo", gspo.DAPO()),
    ("dapo", gspo.DAPO()),
    ("dapo_kl", (gspo.DAPO(), gspo.ReferenceKL(coef=0.04, averaging="token"))),
]


def ours(terms, key):
    """(loss, gradient in the log-probs, gradient in the entropies)."""
    x = {name: torch.tensor(value, dtype=torch.float64) for name, value in GOLDEN["inputs"][key].items()}
    leaf, entropy = x["logprobs"].requires_grad_(True), x["entropy"].requires_grad_(True)
    out = gspo.loss(
        terms,
        leaf,
        old_logprobs=x["old_logprobs"],
        reference_logprobs=x["reference_logprobs"],
        entropy=entropy,
        mask=x["mask"].bool(),
        advantage=x["advantage"],
    ).loss
    out.backward()
    return out.detach(), leaf.grad, torch.zeros_like(entropy) if entropy.grad is None else entropy.grad


def theirs(case, key):
    result = GOLDEN["cases"][case]["results"][key]
    return tuple(torch.tensor(result[n], dtype=torch.float64) for n in ("loss", "gradient", "entropy_gradient"))


@pytest.mark.parametrize("key", GOLDEN["inputs"])
@pytest.mark.parametrize(("case", "terms"), EQUAL, ids=lambda x: x if isinstance(x, str) else "")
def test_equals_trl(case, terms, key):
    for got, expected in zip(ours(terms, key), theirs(case, key), strict=True):
        torch.testing.assert_close(got, expected, **CLOSE)


@pytest.mark.parametrize("key", GOLDEN["inputs"])
def test_dapo_in_one_of_four_updates(key):
    """TRL gives each of four updates a quarter of the generation batch's 100 tokens; ours counts the step's own."""
    tokens = sum(map(sum, GOLDEN["inputs"][key]["mask"]))
    case = GOLDEN["cases"]["dapo_of_four"]
    assert case["results"][key]["num_items_in_batch"] / case["settings"]["steps_per_generation"] == 25
    for got, expected in zip(ours(gspo.DAPO(), key), theirs("dapo_of_four", key), strict=True):
        torch.testing.assert_close(got * tokens, expected * 25, **CLOSE)


def test_the_inputs_reach_every_branch():
    """Clipped low, clipped high and free, at the paper's bounds and at 0.2, so that agreement means something."""
    for case, key, per_row in (("gspo", "near", True), ("grpo", "far", False), ("grpo", "holes", False)):
        x = GOLDEN["inputs"][key]
        mask, gradient = torch.tensor(x["mask"]), theirs(case, key)[1]
        advantage = torch.tensor(x["advantage"])[:, None].expand_as(mask)
        free = gradient != 0
        if per_row:
            mask, free, advantage = mask.any(dim=1), free.any(dim=1), advantage[:, 0]
        for sign in (-1, 1):
            side = mask & (advantage.sign() == sign)
            assert (side & free).any() and (side & ~free).any(), (case, key, sign)


def test_zero_and_empty_rows_have_no_gradient():
    for case, _ in EQUAL[:6]:
        for key in GOLDEN["inputs"]:
            gradient = theirs(case, key)[1]
            assert not gradient[2].any() and not gradient[4].any()
