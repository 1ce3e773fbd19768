"""What of ours is compared with which recorded case, and how closely. docs/parity.md lists the same rows.

`recorded` names the file and the case in it. Tolerances are relative; where they are not 1e-12 the reason is
FLOAT32: they compute a part in float32, or ROOT: that, and they take a root with an epsilon inside.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import gspo
from gspo.corrections import OPSM, GeometricBand, IcePop, SequenceMask, SequenceTIS, TokenMask, TokenTIS, TopEntropy

EXACT, FLOAT32, ROOT = 1e-12, 1e-6, 5e-6
FILES = {"trl": "trl_1_16.json", "verl": "verl_0_9_1.json", "authors": "authors.json"}
RECORDED = {name: json.loads(Path(__file__).with_name(file).read_text()) for name, file in FILES.items()}
LENGTH = 9
"""Padded width of every recorded tensor."""


@dataclass(frozen=True)
class Case:
    recorded: str
    ours: Any
    rtol: float = EXACT
    part: str = "value and gradient"
    """What is compared: or only the "gradient", the "rows kept", the prompts' "values"."""
    group: str = ""
    """The grouping of the rows, for losses over groups."""

    @property
    def file(self) -> str:
        return self.recorded.split("/")[0]

    def __str__(self) -> str:
        ours = self.ours if isinstance(self.ours, tuple) else (self.ours,)
        return f"{self.recorded} {'+'.join(type(part).__name__ for part in ours)}"


def corrected(base, *corrections):
    return gspo.Corrected(base=base, corrections=corrections)


DAPO, GRPO, SAPO = gspo.DAPO(), gspo.GRPO(), gspo.SAPO(tau_neg=1.0625)
WIDE = {"clip_low": 0.2, "clip_high": 0.2}

TRL_LOSSES = [
    Case("trl/gspo", gspo.GSPO()),
    Case("trl/gspo", gspo.GSPOToken()),
    Case("trl/gspo_wide", gspo.GSPO(**WIDE)),
    Case("trl/gspo_wide", gspo.GSPOToken(**WIDE)),
    Case("trl/grpo", GRPO),
    Case("trl/grpo_wild", GRPO),
    Case("trl/grpo_clip_higher", gspo.GRPO(clip_high=0.28)),
    Case("trl/grpo_kl", (GRPO, gspo.ReferenceKL(coef=0.04, estimator="k3"))),
    Case("trl/grpo_kl_default", (GRPO, gspo.ReferenceKL(coef=0.04, estimator="unbiased"))),
    Case("trl/grpo_entropy", (GRPO, gspo.EntropyBonus(coef=0.01))),
    Case("trl/dr_grpo", gspo.DrGRPO(max_length=LENGTH)),
    Case("trl/bnpo", DAPO),
    Case("trl/dapo", DAPO),
    Case("trl/dapo_kl", (DAPO, gspo.ReferenceKL(coef=0.04, averaging="token"))),
    Case("trl/sapo", SAPO),
    Case("trl/sapo_default", gspo.SAPO(), FLOAT32),
    Case("trl/cispo", gspo.CISPO()),
    Case("trl/vespo", gspo.VESPO()),
    Case("trl/luspo", gspo.LUSPO()),
    Case("trl/grpo_delta", gspo.DualClip(c=4.0)),
    Case("trl/gspo_delta", gspo.DualClip(base=gspo.GSPO(**WIDE), c=1.25)),
    Case("trl/gmpo", gspo.GMPO()),
    Case("trl/top_entropy", corrected(DAPO, TopEntropy())),
    Case("trl/top_entropy_grpo", corrected(GRPO, TopEntropy())),
    Case("trl/opsm", corrected(SAPO, OPSM(delta=0.1))),
    Case("trl/opsm_sampler", corrected(SAPO, TokenTIS(), OPSM(delta=0.1))),
    Case("trl/token_truncate", corrected(DAPO, TokenTIS())),
    Case("trl/token_mask", corrected(DAPO, TokenMask())),
    Case("trl/token_mask_band", corrected(DAPO, IcePop(high=3.0))),
    Case("trl/sequence_truncate", corrected(DAPO, SequenceTIS())),
    Case("trl/sequence_mask", corrected(DAPO, SequenceMask())),
    Case("trl/gspo_sequence_mask", corrected(gspo.GSPO(**WIDE), SequenceMask())),
    Case("trl/rloo", gspo.REINFORCE(), EXACT, "gradient"),
    Case("trl/dpo", gspo.DPO(), group="group_of_two"),
]
TRL_ADVANTAGES = [
    Case("trl/group_std", gspo.GroupStd()),
    Case("trl/group_mean", gspo.GroupMean()),
    Case("trl/batch_std", gspo.LitePPO(), FLOAT32),
    Case("trl/gdpo", gspo.GDPO(), FLOAT32),
    Case("trl/gdpo_weighted", gspo.GDPO(weights=(1.0, 0.25)), FLOAT32),
    Case("trl/leave_one_out", gspo.RLOO()),
]
ADAPTIVE = gspo.AdaptiveEntropy(coef=0.01, delta=0.005, coef_max=0.02, target=0.75)
TRL_STATE = [Case("trl/adaptive_entropy", ADAPTIVE)]
TRL_VALUES = [Case("trl/a2po_values", gspo.AStar(), part="values")]

VERL_LOSSES = [
    Case("verl/vanilla", gspo.DualClip(base=DAPO)),
    Case("verl/vanilla_single_clip", DAPO),
    Case("verl/vanilla_seq_mean", gspo.DualClip()),
    Case("verl/vanilla_seq_mean", gspo.ABCGRPO(eps2=1.0, eps3=2.0)),
    Case("verl/vanilla_seq_sum", gspo.DrGRPO(max_length=1)),
    Case("verl/vanilla_norm", gspo.DrGRPO(max_length=LENGTH)),
    Case("verl/vanilla_norm_20", gspo.DrGRPO(max_length=20)),
    Case("verl/gspo", gspo.GSPO()),
    Case("verl/gspo", gspo.GSPOToken()),
    Case("verl/gspo_wide", gspo.GSPO(**WIDE)),
    Case("verl/gspo_seq_sum", gspo.LUSPO()),
    Case("verl/geo_mean", gspo.GMPO()),
    Case("verl/sapo", gspo.SAPO()),
    Case("verl/cispo", gspo.CISPO()),
    Case("verl/cispo_default", gspo.CISPO(**WIDE)),
    Case("verl/gpg", gspo.REINFORCE(averaging="token")),
    Case("verl/gpg_seq_sum", gspo.REINFORCE()),
    Case("verl/dppo_tv", gspo.DPPO()),
    Case("verl/dppo_kl", gspo.DPPO(divergence="kl", clip_low=0.05, clip_high=0.05)),
    Case("verl/dppo_tv_cap_3", gspo.DPPO(cap=3.0)),
    Case("verl/kl_k1", gspo.ReferenceKL(coef=1.0, estimator="k1", averaging="token")),
    Case("verl/kl_k2", gspo.ReferenceKL(coef=1.0, estimator="k2", averaging="token")),
    Case("verl/kl_k3", gspo.ReferenceKL(coef=1.0, estimator="k3", averaging="token")),
]
VERL_WEIGHTS = [
    Case("verl/token_tis", TokenTIS()),
    Case("verl/sequence_tis", SequenceTIS()),
    Case("verl/icepop", IcePop()),
    Case("verl/icepop_narrow", IcePop(low=0.6, high=1.8)),
    Case("verl/sequence_icepop", SequenceMask()),
]
VERL_REJECTIONS = [
    Case("verl/seq_mean_k1", GeometricBand(low=0.8, high=1.25), part="rows kept"),
    Case("verl/seq_mean_k1_preset", GeometricBand(), part="rows kept"),
]
VERL_ADVANTAGES = [
    Case("verl/grpo", gspo.GroupStd(eps=1e-6)),
    Case("verl/grpo_vectorized", gspo.GroupStd(eps=1e-6), FLOAT32),
    Case("verl/grpo_without_std", gspo.GroupMean()),
    Case("verl/rloo", gspo.RLOO()),
    Case("verl/rloo_vectorized", gspo.RLOO()),
    Case("verl/opo", gspo.OPO()),
    Case("verl/reinforce_plus_plus", gspo.ReinforcePP(), FLOAT32),
    Case("verl/reinforce_plus_plus_discounted", gspo.ReinforcePP(gamma=0.5), FLOAT32),
    Case("verl/reinforce_plus_plus_baseline", gspo.ReinforcePPBaseline(), FLOAT32),
    Case("verl/gdpo", gspo.GDPO(eps=1e-6, whiten="token"), ROOT),
    Case("verl/gdpo_weighted", gspo.GDPO(weights=(1.0, 0.25), eps=1e-6, whiten="token"), ROOT),
]

AUTHORS_LOSSES = [
    Case("authors/rebel/eta_1.0", gspo.REBEL(), group="group_of_two"),
    Case("authors/rebel/eta_0.25", gspo.REBEL(eta=0.25), group="group_of_two"),
    Case("authors/trpa/two_levels", gspo.TRPA(levels=(-1.0,)), group="group_of_three"),
    Case("authors/trpa/three_levels", gspo.TRPA(levels=(-1.0, -2.0)), group="group_of_three"),
    Case("authors/trpa/a_group_of_one_level", gspo.TRPA(levels=(-1.0,)), group="group_of_three"),
    Case("authors/trpa/no_pairs", gspo.TRPA(levels=(-1.0,)), group="group_of_three"),
    Case("authors/vespo/default", gspo.VESPO()),
    Case("authors/gmpo/default", gspo.GMPO(), FLOAT32),
    Case("authors/dppo/tv", gspo.DPPO()),
    Case("authors/dppo/kl", gspo.DPPO(divergence="kl", clip_low=0.05, clip_high=0.05)),
    Case("authors/dppo/tv_cap", gspo.DPPO(cap=3.0)),
    Case("authors/prime_rl/without_kl", gspo.DPPO(clip_low=0.2, clip_high=0.2, cap=1e9), EXACT, "gradient"),
    Case(
        "authors/prime_rl/default",
        (gspo.DPPO(clip_low=0.2, clip_high=0.2, cap=1e9), gspo.OldKL(coef=2e-3, estimator="k2")),
        EXACT,
        "gradient",
    ),
]
AUTHORS_ADVANTAGES = [
    Case("authors/opo/optimal", gspo.OPO(), FLOAT32),
    Case("authors/opo/optimal_batch", gspo.OPO(scope="batch")),
    Case("authors/gdpo/trl_fork", gspo.GDPO()),
    Case("authors/gdpo/trl_fork_weighted", gspo.GDPO(weights=(1.0, 0.25))),
    Case("authors/gdpo/verl_fork", gspo.GDPO(eps=1e-6, whiten="token"), ROOT),
]
AUTHORS_PASS_AT_K = [
    Case("authors/pass_at_k/k_1", gspo.PassAtK(k=1, eps=1e-6)),
    Case("authors/pass_at_k/k_2", gspo.PassAtK(k=2, eps=1e-6)),
    Case("authors/pass_at_k/k_3", gspo.PassAtK(k=3, eps=1e-6)),
    Case("authors/pass_at_k/k_4", gspo.PassAtK(k=4, eps=1e-6)),
]
TRL = [*TRL_LOSSES, *TRL_ADVANTAGES, *TRL_STATE, *TRL_VALUES]
VERL = [*VERL_LOSSES, *VERL_WEIGHTS, *VERL_REJECTIONS, *VERL_ADVANTAGES]
EVERY = [*TRL, *VERL, *AUTHORS_LOSSES, *AUTHORS_ADVANTAGES, *AUTHORS_PASS_AT_K]


def number(value):
    """A tensor of what JSON has; None is NaN."""
    fill = lambda v: [fill(i) for i in v] if isinstance(v, list) else (float("nan") if v is None else v)  # noqa: E731
    return torch.tensor(fill(value), dtype=torch.float64)


def inputs(file, key):
    return {name: number(value) for name, value in RECORDED[file]["inputs"][key].items()}


def scored(file, key):
    """(rewards [B,K], group [B], length [B])."""
    given = RECORDED[file]["scored"][key]
    return number(given["rewards"]), torch.tensor(given["group"]), torch.tensor(given["length"])


def ours(terms, x, *, group=None, rewards=None, with_sampler=False):
    """(loss, gradient in the log-probs, gradient in the entropies). The entropy of the old policy is the same."""
    leaf, entropy = x["logprobs"].clone().requires_grad_(True), x["entropy"].clone().requires_grad_(True)
    out = gspo.loss(
        terms,
        leaf,
        old_logprobs=x["old_logprobs"],
        reference_logprobs=x["reference_logprobs"],
        sampler_logprobs=x["sampler_logprobs"] if with_sampler else None,
        entropy=entropy,
        old_entropy=x["entropy"],
        mask=x["mask"].bool(),
        advantage=x["advantage"],
        group=group,
        rewards=rewards,
    ).loss
    out.backward()
    return out.detach(), leaf.grad, torch.zeros_like(entropy) if entropy.grad is None else entropy.grad


def theirs(result):
    """(loss, gradient in the log-probs, gradient in the entropies) of one recorded result."""
    gradient = number(result["gradient"])
    entropy = number(result["entropy_gradient"]) if "entropy_gradient" in result else torch.zeros_like(gradient)
    return number(result["loss"]), gradient, entropy


def assert_equal(got, expected, case):
    skip = 1 if case.part == "gradient" else 0
    for mine, other in zip(got[skip:], expected[skip:], strict=True):
        close(mine, other, case.rtol)


def close(got, expected, rtol=EXACT):
    torch.testing.assert_close(got.double(), expected, rtol=rtol, atol=rtol / 100)
