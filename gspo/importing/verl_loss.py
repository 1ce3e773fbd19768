"""verl's policy loss and the terms beside it as ours: what the objective is, and how close.

loss_mode chooses the loss and loss_agg_mode how tokens are averaged. verl's GSPO averages over the update's tokens
unless told otherwise: a sequence's share of the gradient then grows with its length, which the report calls
length-weighted. That is LUSPO up to a scale, and not GSPO.
"""

import math
from collections.abc import Mapping
from typing import Any

from gspo.importing.report import Handler, Said, Verdict
from gspo.importing.verl_step import (
    ACTOR,
    AVERAGING,
    CORRECTION,
    ESTIMATOR,
    LOSS_MODE,
    Verl,
    bounds,
    gives_units,
)

AVERAGINGS = ("token-mean", "token-sum", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")
TOKEN, TOKEN_SUM, ROWS, ROW_SUMS, ROW_SUMS_NORM = AVERAGINGS
MODES = (
    *("vanilla", "gspo", "sapo", "geo_mean", "cispo", "gpg", "dppo_tv", "dppo_kl", "dro", "bypass_mode"),
    *("clip_cov", "kl_cov"),
)
WIDE = 0.05
"""Clip bound that a length-normalised sequence ratio practically never reaches."""
NEVER = math.exp(20)
"""verl clamps token log-ratios at 20, so a cap above this never acts."""


def mode_of(lib: Verl) -> str:
    """The loss that runs. verl's legacy trainer replaces it in bypass mode; the trainer since 0.9 does not."""
    s = lib.settings
    mode = s.choice(LOSS_MODE, MODES)
    if mode == "bypass_mode" or (lib.is_bypassed and not s.is_on("trainer.use_v1")):
        is_reinforce = s[f"{CORRECTION}loss_type"] == "reinforce" and not s.is_on("trainer.use_v1")
        return "reinforce" if is_reinforce else "vanilla"
    return mode


def averaging_of(lib: Verl) -> str:
    return lib.settings.choice(AVERAGING, AVERAGINGS)


def _scale(lib: Verl) -> float:
    """What seq-mean-token-sum-norm divides by; max_response_length stands for the padded width."""
    key = f"{ACTOR}loss_scale_factor"
    return lib.settings.count("data.max_response_length" if lib.settings[key] is None else key)


# ---- which objective -------------------------------------------------------------------------------------------


def _is_capped(lib: Verl) -> bool:
    """Whether the loss is inside a dual clip of ours."""
    cap = lib.settings.number(f"{ACTOR}clip_ratio_c")
    return mode_of(lib) in CLIPPED and 1 + bounds(lib.settings)[1] < cap < NEVER


CLIPPED = ("vanilla", "clip_cov", "kl_cov")


def _base(lib: Verl) -> str:
    return "objective.base" if _is_capped(lib) else "objective"


def _loss_mode(lib: Verl, key: str) -> Said:
    mode, base = mode_of(lib), _base(lib)
    name = name_of(lib, mode)
    sets: dict[str, Any] = {f"{base}.name": name}
    if name == "dr_grpo":
        sets[f"{base}.max_length"] = 1 if averaging_of(lib) != ROW_SUMS_NORM else _scale(lib)
    if name == "reinforce":
        sets |= {"objective.averaging": REINFORCE[averaging_of(lib)], "objective.off_policy": lib.batch.made > 1}
    if mode.startswith("dppo"):
        sets["objective.divergence"] = mode.removeprefix("dppo_")
    verdict, why = _mode_verdict(lib, mode)
    adds = {"terms": _dro_term(lib)} if mode == "dro" else {}
    return Said(verdict=verdict, why=why, factor=_mode_factor(lib, mode), sets=sets, adds=adds)


def name_of(lib: Verl, mode: str) -> str:
    averaging = averaging_of(lib)
    if mode in CLIPPED:
        return VANILLA[averaging]
    if mode == "gspo" and averaging == ROWS:
        return "gspo_token" if gives_units(lib) else "gspo"
    return NAMES[mode]


VANILLA = {TOKEN: "dapo", TOKEN_SUM: "dr_grpo", ROWS: "grpo", ROW_SUMS: "dr_grpo", ROW_SUMS_NORM: "dr_grpo"}
NAMES = {
    "gspo": "luspo",
    "sapo": "sapo",
    "geo_mean": "gmpo",
    "cispo": "cispo",
    "gpg": "reinforce",
    "reinforce": "reinforce",
    "dro": "reinforce",
    "dppo_tv": "dppo",
    "dppo_kl": "dppo",
}
REINFORCE = {TOKEN: "token", TOKEN_SUM: "sum", ROWS: "sequence", ROW_SUMS: "sum", ROW_SUMS_NORM: "sum"}


def _mode_verdict(lib: Verl, mode: str) -> tuple[Verdict, str]:
    s = lib.settings
    if mode in ("clip_cov", "kl_cov"):
        return "different", "the choice of tokens by covariance is not here; vanilla is written"
    if mode == "geo_mean":
        low, high = bounds(s)
        if low != high:
            return "different", f"one bound of the log-ratio here: {low:g} is taken"
        return "equal up to a scale", "a mean over each micro-batch there, and they add up"
    if mode == "reinforce":
        if s[f"{CORRECTION}rollout_is"] is None:
            return "equal", "bypass mode with loss_type=reinforce: no ratio"
        return "different", "bypass mode weighs log-probs by the current ratio to the sampler; without weights here"
    if mode == "vanilla" and s[LOSS_MODE] != "vanilla":
        return "equal", "bypass mode runs vanilla on the sampler's log-probs, whatever loss_mode says"
    return "equal", WHY.get(mode, "")


WHY = {
    "vanilla": "clipped token ratios, in a dual clip (clip_ratio_c)",
    "gspo": "the length-normalised sequence ratio",
    "cispo": "clipped token ratios as weights",
    "gpg": "no ratio",
    "dro": "log-prob x advantage, and k2 to the old policy",
}


def _mode_factor(lib: Verl, mode: str) -> str:
    if mode != "geo_mean" or bounds(lib.settings)[0] != bounds(lib.settings)[1]:
        return ""
    return "micro-batches of an update" if lib.micro_batches is None else str(lib.micro_batches)


def _dro_term(lib: Verl) -> Mapping[str, Any]:
    key = f"{ACTOR}policy_loss.dro_beta"
    if lib.settings[key] is None or lib.settings.number(key) <= 0:
        raise ValueError(f"{key} is {lib.settings[key]!r}; loss_mode=dro needs a number above 0, in verl too")
    averaging = "sequence" if averaging_of(lib) == ROWS else "token"
    return {"name": "old_kl", "coef": lib.settings.number(key), "estimator": "k2", "averaging": averaging}


def _agg_mode(lib: Verl, key: str) -> Said:
    mode, averaging = mode_of(lib), averaging_of(lib)
    if mode in ("sapo", "geo_mean"):
        what = "seq-mean-token-mean" if mode == "sapo" else "a mean over rows"
        is_same = mode == "sapo" and averaging == ROWS
        why = "" if is_same else f"{mode} is {what} whatever this says; KL and entropy terms do read it"
        return Said(verdict="equal" if is_same else "no counterpart", why=why)
    if mode == "gspo":
        return _gspo_averaging(lib, averaging)
    if averaging == ROW_SUMS_NORM and lib.settings[f"{ACTOR}loss_scale_factor"] is None:
        why = "without loss_scale_factor theirs divides by the padded width of a micro-batch; max_response_length here"
        return Said(verdict="different", why=why)
    if mode in ("gpg", "reinforce"):
        return _reinforce_averaging(lib, averaging)
    if mode in CLIPPED:
        if averaging == TOKEN_SUM:
            return Said(
                verdict="equal up to a scale", why="a plain sum", factor=f"{lib.batch.rows} (rows of an update)"
            )
        return Said(verdict="equal", why=AVERAGING_WHY[averaging])
    if averaging == TOKEN or (averaging == ROWS and mode == "dro"):
        return Said(verdict="equal", why=AVERAGING_WHY[averaging])
    if averaging == TOKEN_SUM and mode != "dro":
        return Said(verdict="equal up to a scale", why="a plain sum; ours is a mean", factor="tokens of the update")
    return Said(verdict="different", why=f"{name_of(lib, mode)} averages over the update's tokens here")


AVERAGING_WHY = {
    TOKEN: "mean over the update's tokens",
    ROWS: "mean over sequences of means over tokens",
    ROW_SUMS: "mean over sequences of sums over tokens",
    ROW_SUMS_NORM: "sums over tokens / (rows x loss_scale_factor)",
}


def _gspo_averaging(lib: Verl, averaging: str) -> Said:
    if averaging == ROWS:
        return Said(verdict="equal", why="mean over sequences")
    if averaging == ROW_SUMS:
        return Said(verdict="equal", why="length-weighted: a sequence counts by its length, which is luspo")
    why = (
        "length-weighted: every sequence's share of the gradient grows with its length, and this is not GSPO "
        "(seq-mean-token-mean is). Nearest of ours: luspo"
    )
    factors = {TOKEN: "rows / tokens of the update", TOKEN_SUM: f"{lib.batch.rows} (rows of an update)"}
    is_known = lib.settings[f"{ACTOR}loss_scale_factor"] is not None
    norm = f"1/{_scale(lib):g}" if is_known else "1/padded width of a micro-batch"
    return Said(verdict="different", why=why, factor=factors.get(averaging, norm))


def _reinforce_averaging(lib: Verl, averaging: str) -> Said:
    if averaging in (TOKEN, ROWS, ROW_SUMS):
        return Said(verdict="equal", why=AVERAGING_WHY[averaging])
    factor = f"{lib.batch.rows} (rows of an update)" if averaging == TOKEN_SUM else f"1/{_scale(lib):g}"
    return Said(verdict="equal up to a scale", why="ours is a mean over sequences of sums", factor=factor)


def _scale_factor(lib: Verl, key: str) -> Said:
    if averaging_of(lib) != ROW_SUMS_NORM:
        return Said(verdict="no counterpart", why="read with loss_agg_mode=seq-mean-token-sum-norm alone")
    return Said(verdict="equal", why="see loss_agg_mode")


# ---- bounds ----------------------------------------------------------------------------------------------------


def _bound(side: int, names: Mapping[str, str]) -> Handler:
    """clip_ratio_low (side 0) and clip_ratio_high (side 1)."""

    def handler(lib: Verl, key: str) -> Said:
        mode, value = mode_of(lib), bounds(lib.settings)[side]
        if mode == "geo_mean":
            sets = {"objective.delta": value} if side == 0 else {}
            return Said(verdict="equal", why="a bound of the log-ratio", ours="objective.delta", sets=sets)
        if mode not in (*CLIPPED, "gspo", "cispo", "dppo_tv", "dppo_kl"):
            return Said(verdict="no counterpart", why=f"{mode} does not clip")
        return Said(
            verdict="equal", why=_bound_why(lib, mode, value, side), sets={f"{_base(lib)}.{names[mode]}": value}
        )

    return handler


def _bound_why(lib: Verl, mode: str, value: float, side: int) -> str:
    if mode.startswith("dppo"):
        return "a bound of the divergence"
    if mode == "cispo":
        return f"a distance from 1: the weight is at {'most' if side else 'least'} {1 + value if side else 1 - value:g}"
    if lib.batch.made <= 1 and not lib.is_bypassed:
        return "one update per rollout batch: the ratio is 1 and no clip acts"
    if mode == "gspo" and value >= WIDE:
        return "practically never clips: a sequence ratio moves by about 1e-3 an update; the paper has 3e-4 and 4e-4"
    return ""


NAMED = {mode: "clip_{side}" for mode in (*CLIPPED, "gspo", "cispo", "dppo_tv", "dppo_kl")}


def _named(side: str) -> Mapping[str, str]:
    return {mode: name.format(side=side) for mode, name in NAMED.items()}


def _clip_ratio(lib: Verl, key: str) -> Said:
    s = lib.settings
    if s[f"{ACTOR}clip_ratio_low"] is None or s[f"{ACTOR}clip_ratio_high"] is None:
        return Said(verdict="equal", why="taken where clip_ratio_low or clip_ratio_high is null")
    low, high = bounds(s)
    why = f"changes nothing in verl: clip_ratio_low = {low:g} and clip_ratio_high = {high:g} are set, and they count"
    return Said(verdict="no counterpart", why=why)


def _clip_ratio_c(lib: Verl, key: str) -> Said:
    mode, cap = mode_of(lib), lib.settings.number(key)
    if mode in ("dppo_tv", "dppo_kl"):
        return Said(verdict="equal", why="the largest weight of a token", sets={"objective.cap": cap})
    if mode not in CLIPPED:
        return Said(verdict="no counterpart", why=f"{mode} does not read it")
    if cap <= 1:
        raise ValueError(f"{key} is {cap:g}; verl needs more than 1")
    if cap >= NEVER:
        return Said(verdict="equal", why="never reached: verl clamps log-ratios at 20")
    if not _is_capped(lib):
        return Said(verdict="different", why="a dual clip at or below 1 + clip_ratio_high is not here; left out")
    why = "dual clip: where A < 0, no gradient above this ratio"
    return Said(verdict="equal", why=why, sets={"objective.name": "dual_clip", "objective.c": cap})


def _tau(name: str) -> Handler:
    def handler(lib: Verl, key: str) -> Said:
        if mode_of(lib) != "sapo":
            return Said(verdict="no counterpart", why="read with loss_mode=sapo alone")
        return Said(verdict="equal", sets={f"objective.{name}": lib.settings.number(key)})

    return handler


def _dro_beta(lib: Verl, key: str) -> Said:
    if mode_of(lib) != "dro":
        return Said(verdict="no counterpart", why="read with loss_mode=dro alone")
    return Said(verdict="equal", ours="terms: old_kl, coef")


# ---- terms -----------------------------------------------------------------------------------------------------


def _term_averaging(lib: Verl) -> tuple[str, Verdict, str]:
    """(averaging of ours, verdict, why) of a KL or entropy term, which loss_agg_mode averages too."""
    mode, averaging = mode_of(lib), averaging_of(lib)
    ours = "sequence" if averaging == ROWS else "token"
    if averaging not in (TOKEN, ROWS):
        return ours, "different", f"averaged by {averaging} there, by {ours} here"
    if mode == "geo_mean":
        return (
            ours,
            "different",
            "geo_mean is not divided by the number of micro-batches and this is; the balance differs",
        )
    if mode == "gspo" and averaging == TOKEN:
        return ours, "different", "beside luspo, which has another scale than this mean over tokens"
    return ours, "equal", AVERAGING_WHY[averaging]


def _use_kl_loss(lib: Verl, key: str) -> Said:
    s = lib.settings
    if not s.is_on(key):
        return Said(verdict="equal", why="no KL term")
    ours, verdict, why = _term_averaging(lib)
    kind = s.choice(f"{ACTOR}kl_loss_type", KL)
    coef = s.number(f"{ACTOR}kl_loss_coef")
    term = {"name": "reference_kl", "coef": coef, "estimator": KL[kind], "averaging": ours}
    return Said(verdict=verdict, why=why, adds={"terms": term})


KL = {
    "kl": "k1",
    "k1": "k1",
    "mse": "k2",
    "k2": "k2",
    "low_var_kl": "k3",
    "k3": "k3",
    "abs": "k2",
    **{name: "k2" for name in ("kl+", "k1+", "mse+", "k2+", "low_var_kl+", "k3+", "abs+")},
}
"""Their estimators as ours; a + gives the gradient of k2 whatever the value."""


def _kl_type(lib: Verl, key: str) -> Said:
    s = lib.settings
    if not s.is_on(f"{ACTOR}use_kl_loss"):
        return Said(verdict="no counterpart", why="use_kl_loss is off")
    kind = s.choice(key, KL)
    ours = f'terms: estimator = "{KL[kind]}"'
    if kind == "abs":
        return Said(verdict="different", why="|log-ratio| is not here; k2 is nearest", ours=ours)
    return Said(verdict="equal", why="the gradient of k2 there too" if kind.endswith("+") else "", ours=ours)


def _kl_coef(lib: Verl, key: str) -> Said:
    if not lib.settings.is_on(f"{ACTOR}use_kl_loss"):
        return Said(verdict="no counterpart", why="use_kl_loss is off")
    return Said(verdict="equal", ours=f"terms: coef = {lib.settings.number(key):g}")


def _entropy(lib: Verl, key: str) -> Said:
    coef = lib.settings.number(key)
    if not coef:
        return Said(verdict="equal", why="no entropy term")
    ours, verdict, why = _term_averaging(lib)
    return Said(verdict=verdict, why=why, adds={"terms": {"name": "entropy_bonus", "coef": coef, "averaging": ours}})


KEYS = {
    LOSS_MODE: _loss_mode,
    AVERAGING: _agg_mode,
    f"{ACTOR}loss_scale_factor": _scale_factor,
    f"{ACTOR}clip_ratio": _clip_ratio,
    f"{ACTOR}clip_ratio_low": _bound(0, _named("low")),
    f"{ACTOR}clip_ratio_high": _bound(1, _named("high")),
    f"{ACTOR}clip_ratio_c": _clip_ratio_c,
    f"{ACTOR}tau_pos": _tau("tau_pos"),
    f"{ACTOR}tau_neg": _tau("tau_neg"),
    f"{ACTOR}policy_loss.dro_beta": _dro_beta,
    f"{ACTOR}use_kl_loss": _use_kl_loss,
    f"{ACTOR}kl_loss_coef": _kl_coef,
    f"{ACTOR}kl_loss_type": _kl_type,
    f"{ACTOR}entropy_coeff": _entropy,
}


DEFAULTS: Mapping[str, Any] = {
    LOSS_MODE: "vanilla",
    AVERAGING: "token-mean",
    f"{ACTOR}loss_scale_factor": None,
    f"{ACTOR}clip_ratio": 0.2,
    f"{ACTOR}clip_ratio_low": 0.2,
    f"{ACTOR}clip_ratio_high": 0.2,
    f"{ACTOR}clip_ratio_c": 3.0,
    f"{ACTOR}tau_pos": 1.0,
    f"{ACTOR}tau_neg": 1.05,
    f"{ACTOR}policy_loss.dro_beta": None,
    f"{ACTOR}use_kl_loss": False,
    f"{ACTOR}kl_loss_coef": 0.001,
    f"{ACTOR}kl_loss_type": "low_var_kl",
    f"{ACTOR}entropy_coeff": 0,
}


def matters(lib: Verl) -> list[str]:
    """Keys of the loss whose default says what their run does."""
    mode, s = mode_of(lib), lib.settings
    keys = [ESTIMATOR, LOSS_MODE, AVERAGING]
    if mode in (*NAMED, "geo_mean"):
        keys += [f"{ACTOR}clip_ratio_low", f"{ACTOR}clip_ratio_high"]
    keys += [f"{ACTOR}clip_ratio_c"] if mode in (*CLIPPED, "dppo_tv", "dppo_kl") else []
    keys += [f"{ACTOR}tau_pos", f"{ACTOR}tau_neg"] if mode == "sapo" else []
    keys += ["algorithm.norm_adv_by_std_in_grpo"] if s[ESTIMATOR] in ("grpo", "grpo_vectorized", "gdpo") else []
    keys.append(f"{ACTOR}use_kl_loss")
    if s.is_on(f"{ACTOR}use_kl_loss"):
        keys += [f"{ACTOR}kl_loss_coef", f"{ACTOR}kl_loss_type"]
    keys.append("algorithm.use_kl_in_reward")
    if s.is_on("algorithm.use_kl_in_reward"):
        keys += ["algorithm.kl_penalty", "algorithm.kl_ctrl.type", "algorithm.kl_ctrl.kl_coef"]
    keys += [f"{ACTOR}entropy_coeff", f"{CORRECTION}rollout_is", f"{CORRECTION}rollout_rs"]
    if s[f"{CORRECTION}rollout_is"] is not None and not lib.is_bypassed:
        keys.append(f"{CORRECTION}rollout_is_threshold")
    return keys
