"""verl's rollout correction as ours: weights and rejections from the sampler's log-probs, and bypass mode."""

from collections.abc import Mapping
from typing import Any

from gspo.importing.report import Said, Verdict, nothing
from gspo.importing.verl_loss import TOKEN, averaging_of, mode_of
from gspo.importing.verl_step import (
    ACTOR,
    CORRECTION,
    ESTIMATOR,
    Verl,
    band,
)


def is_corrected(lib: Verl) -> bool:
    """Whether weights or rejections from the sampler's log-probs act."""
    s = lib.settings
    return not lib.is_bypassed and not (s[f"{CORRECTION}rollout_is"] is None and s[f"{CORRECTION}rollout_rs"] is None)


def _rollout_is(lib: Verl, key: str) -> Said:
    level = lib.settings[key]
    if level is None:
        return Said(verdict="equal", why="no weights")
    if lib.is_bypassed:
        return Said(verdict="no counterpart", why="in bypass mode the ratio itself is to the sampler")
    lib.settings.choice(key, ("token", "sequence"))
    low, high = band(lib.settings[f"{CORRECTION}rollout_is_threshold"])
    names = {("token", False): "token_tis", ("token", True): "icepop", ("sequence", False): "sequence_tis"}
    name = names.get((level, low is not None), "sequence_mask")
    item: dict[str, Any] = {"name": name}
    item |= {"low": low, "high": high} if name == "icepop" else {"cap": high}
    verdict, why, factor = _weights_verdict(lib, level, low)
    return Said(verdict=verdict, why=why, factor=factor, adds={"corrections": item})


def _weights_verdict(lib: Verl, level: str, low: float | None) -> tuple[Verdict, str, str]:
    if lib.settings.is_on(f"{CORRECTION}rollout_is_batch_normalize"):
        return "equal up to a scale", "theirs divides the weights by their mean", "1 / mean weight of the batch"
    if level == "sequence" and low is not None:
        return "different", f"a product below {low:g} counts for nothing there; no lower bound here", ""
    if mode_of(lib) == "geo_mean":
        return "different", "geo_mean takes the geometric mean of a row's weights; ours multiplies each token", ""
    if mode_of(lib) == "dro":
        return "different", "the weight multiplies the penalty there too; terms are left alone here", ""
    return "equal", "" if level == "token" else "the product of a sequence's ratios, not GSPO's geometric mean", ""


def _rollout_rs(lib: Verl, key: str) -> Said:
    modes = lib.settings[key]
    if modes is None:
        return Said(verdict="equal", why="no rejection")
    if lib.is_bypassed and lib.settings.is_on("trainer.use_v1"):
        return Said(verdict="no counterpart", why="bypass mode skips it in the trainer since 0.9")
    if modes != "seq_mean_k1":
        return Said(verdict="no counterpart", why="rejection by seq_mean_k1 is here (geometric_band), and no other")
    threshold = lib.settings[f"{CORRECTION}rollout_rs_threshold"]
    low, high = band(threshold)
    low = 1 / high if low is None else low
    item = {"name": "geometric_band", "low": 1 / high, "high": 1 / low}
    verdict, why = _rejection_verdict(lib)
    factor = "tokens of the update / those kept" if verdict == "equal up to a scale" else ""
    return Said(verdict=verdict, why=f"theirs bounds 1/ratio; {why}", factor=factor, adds={"corrections": item})


def _rejection_verdict(lib: Verl) -> tuple[Verdict, str]:
    """verl takes rejected rows out of the mask, so that whatever counts tokens changes too."""
    s = lib.settings
    if s.is_on(f"{ACTOR}use_kl_loss") or s.number(f"{ACTOR}entropy_coeff"):
        return "different", "rejected rows leave the KL and entropy terms there too"
    if s[ESTIMATOR] in ("gdpo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"):
        return "different", "rejected rows leave the whitening of the advantages there too"
    if averaging_of(lib) == TOKEN and mode_of(lib) not in ("sapo", "geo_mean"):
        return "equal up to a scale", "rejected tokens leave the denominator there and stay in ours"
    return "equal", "rejected rows count as rows in both"


def _threshold(lib: Verl, key: str) -> Said:
    of = f"{CORRECTION}rollout_{'rs' if 'rs' in key else 'is'}"
    if lib.settings[of] is None or lib.is_bypassed:
        return Said(verdict="no counterpart", why=f"{of.rpartition('.')[2]} is not in use")
    return Said(verdict="equal", why=f"see {of}")


def _bypass(lib: Verl, key: str) -> Said:
    if not lib.settings.is_on(key):
        return Said(verdict="equal", why="the trainer scores what was sampled once more")
    return Said(verdict="equal", why="the ratio's denominator is the sampler's", sets={"old_logprobs": "sampler"})


KEYS = {
    f"{CORRECTION}rollout_is": _rollout_is,
    f"{CORRECTION}rollout_is_threshold": _threshold,
    f"{CORRECTION}rollout_is_batch_normalize": _threshold,
    f"{CORRECTION}rollout_rs": _rollout_rs,
    f"{CORRECTION}rollout_rs_threshold": _threshold,
    f"{CORRECTION}bypass_mode": _bypass,
    f"{CORRECTION}loss_type": nothing("read by the legacy trainer's bypass mode; see policy_loss.loss_mode"),
}

DEFAULTS: Mapping[str, Any] = {
    f"{CORRECTION}rollout_is": None,
    f"{CORRECTION}rollout_is_threshold": 2.0,
    f"{CORRECTION}rollout_is_batch_normalize": False,
    f"{CORRECTION}rollout_rs": None,
    f"{CORRECTION}rollout_rs_threshold": None,
    f"{CORRECTION}bypass_mode": False,
    f"{CORRECTION}loss_type": "ppo_clip",
}
