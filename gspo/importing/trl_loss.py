"""TRL's loss, advantage and engine correction as ours: what the objective is, and how close.

The loss is chosen by loss_type, which also says how tokens are averaged, and importance_sampling_level. At the sequence
level, losses that sum over tokens repeat a sequence's value over its tokens, so its share of the gradient grows with
its length: the report calls them length-weighted. They are LUSPO up to a scale, and not GSPO.
"""

from collections.abc import Mapping
from typing import Any

from gspo.importing.report import Handler, Said, Verdict, nothing
from gspo.importing.trl_step import TRL

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
LOSS_TYPES = (*CLIPPED, "cispo", "sapo", "vespo")
SHARED = ("dapo", "cispo", "vespo")
"""Divided by the generation batch's tokens, shared equally over its updates."""
WIDE = 0.05
"""Clip bound that a length-normalised sequence ratio practically never reaches."""


def _is_sequence(lib: TRL) -> bool:
    return lib.settings.choice("importance_sampling_level", ("token", "sequence")) == "sequence"


def _kind(lib: TRL) -> str:
    if lib.settings["loss_type"] == "gspo":
        raise ValueError('loss_type is "gspo"; in TRL, GSPO is importance_sampling_level="sequence", loss_type="grpo"')
    return lib.settings.choice("loss_type", LOSS_TYPES)


def _is_length_weighted(lib: TRL) -> bool:
    return _is_sequence(lib) and _kind(lib) in ("dapo", "bnpo", "dr_grpo")


def _is_capped(lib: TRL) -> bool:
    """Whether `delta` acts as a dual clip of ours."""
    s = lib.settings
    return _kind(lib) in CLIPPED and s["delta"] is not None and s.number("delta") != 1 + _high(lib)


def _base(lib: TRL) -> str:
    return "objective.base" if _is_capped(lib) else "objective"


def _high(lib: TRL) -> float:
    s = lib.settings
    return s.number("epsilon" if s["epsilon_high"] is None else "epsilon_high")


# ---- which objective -------------------------------------------------------------------------------------------


def _objective(lib: TRL) -> Mapping[str, Any]:
    """The objective's name and whatever no other key sets."""
    name, more = OBJECTIVES[_is_sequence(lib), _kind(lib)]
    base = _base(lib)
    sets: dict[str, Any] = {f"{base}.name": name}
    if more == "max_completion_length":
        sets[f"{base}.max_length"] = lib.settings.count("max_completion_length")
    if more == "one":
        sets[f"{base}.max_length"] = 1
    return sets


OBJECTIVES = {
    (False, "grpo"): ("grpo", ""),
    (False, "bnpo"): ("dapo", ""),
    (False, "dapo"): ("dapo", ""),
    (False, "dr_grpo"): ("dr_grpo", "max_completion_length"),
    (False, "luspo"): ("dr_grpo", "one"),
    (False, "cispo"): ("cispo", ""),
    (False, "sapo"): ("sapo", ""),
    (False, "vespo"): ("vespo", ""),
    (True, "grpo"): ("gspo", ""),
    (True, "bnpo"): ("luspo", ""),
    (True, "dapo"): ("luspo", ""),
    (True, "dr_grpo"): ("luspo", ""),
    (True, "luspo"): ("luspo", ""),
    (True, "cispo"): ("cispo", ""),
    (True, "sapo"): ("sapo", ""),
    (True, "vespo"): ("vespo", ""),
}
"""(sequence level, loss_type) -> our objective, and where its max_length comes from."""


def _level(lib: TRL, key: str) -> Said:
    kind = _kind(lib)
    if not _is_sequence(lib):
        return Said(verdict="equal", why="token ratios")
    if _is_length_weighted(lib):
        why = (
            f'length-weighted: loss_type="{kind}" sums over tokens, so every sequence\'s share of the gradient grows '
            'with its length, and this is not GSPO (loss_type="grpo" is). Nearest of ours: luspo'
        )
        return Said(verdict="different", why=why)
    if kind == "vespo":
        return Said(verdict="equal", why="vespo has a sequence weight of its own; the level moves the KL alone")
    if kind == "cispo":
        why = "length-weighted: the sequence ratio weighs every token, and tokens are summed; ours has token ratios"
        return Said(verdict="different", why=why)
    if kind == "sapo":
        return Said(verdict="different", why="a gate on the sequence ratio; ours gates token ratios")
    return Said(verdict="equal", why="the length-normalised sequence ratio of GSPO")


def _loss_type(lib: TRL, key: str) -> Said:
    kind, sets = _kind(lib), _objective(lib)
    if _is_length_weighted(lib):
        why = "length-weighted, see importance_sampling_level: luspo up to a scale, and not GSPO"
        return Said(verdict="different", why=why, factor=_luspo_factor(lib), sets=sets)
    if _is_sequence(lib) and kind in ("cispo", "sapo"):
        return Said(verdict="different", why="see importance_sampling_level", sets=sets)
    if not _is_sequence(lib) and kind == "luspo":
        why = "luspo on token ratios: the clipped tokens of a row are summed"
        return Said(verdict="equal", why=why, sets=sets)
    verdict, why, factor = _averaging(lib)
    return Said(verdict=verdict, why=why, factor=factor, sets=sets)


def _luspo_factor(lib: TRL) -> str:
    """A length-weighted loss of theirs = luspo x this; nothing where parts of an update have several."""
    kind, (verdict, _, _) = _kind(lib), _averaging(lib)
    if kind == "dr_grpo":
        return f"1/{lib.settings['max_completion_length']}"
    if verdict == "different":
        return ""
    return f"rows of the update / {_shared_tokens(lib)}"


def _shared_tokens(lib: TRL) -> str:
    """The denominator of dapo, cispo and vespo."""
    cuts = lib.batch.made / lib.batch.epochs
    return "tokens of the update" if cuts <= 1 else f"(tokens of the rollout batch / {cuts:g})"


def _averaging(lib: TRL) -> tuple[Verdict, str, str]:
    """(verdict, why, factor) of what the loss is divided by, against ours: counts of the whole update."""
    kind, b = _kind(lib), lib.batch
    if kind in SHARED and b.generations > 1:
        return "different", f"a token counts by its own generation batch, one of {b.generations} in an update", ""
    if kind in SHARED and b.made > b.epochs:
        why = f"theirs divides by the generation batch's tokens / {b.made / b.epochs:g}, ours by the update's own"
        return "equal up to a scale", why, f"tokens of the update / {_shared_tokens(lib)}"
    if kind == "bnpo" and b.parts > 1:
        return "different", f"a token counts by its own micro-batch, one of {b.parts}; ours averages the update", ""
    return "equal", WHY.get(kind, ""), ""


WHY = {
    "grpo": "mean over sequences",
    "sapo": "mean over sequences of means over tokens",
    "dapo": "mean over the update's tokens",
    "bnpo": "mean over the update's tokens",
    "cispo": "mean over the update's tokens",
    "vespo": "mean over the update's tokens",
    "dr_grpo": "sum over tokens / (rows x max_completion_length)",
    "luspo": "mean over sequences of length x value",
}


# ---- bounds ----------------------------------------------------------------------------------------------------


def _no_clip(lib: TRL, value: float) -> str:
    if lib.batch.made <= 1:
        return "one update per rollout batch: the ratio is 1 and no clip acts"
    if _is_sequence(lib) and value >= WIDE:
        return "practically never clips: a sequence ratio moves by about 1e-3 an update; the paper has 3e-4 and 4e-4"
    return ""


def _epsilon(lib: TRL, key: str) -> Said:
    kind, value = _kind(lib), lib.settings.number(key)
    if kind == "cispo":
        if lib.settings["epsilon_high"] is None:
            return Said(verdict="equal", why="epsilon_high is not set, so this is the cap", ours="see epsilon_high")
        return Said(verdict="no counterpart", why="cispo has no lower cap")
    if kind not in CLIPPED:
        return Said(verdict="no counterpart", why=f"{kind} does not clip")
    return Said(verdict="equal", why=_no_clip(lib, value), sets={f"{_base(lib)}.clip_low": value})


def _epsilon_high(lib: TRL, key: str) -> Said:
    kind = _kind(lib)
    if kind not in (*CLIPPED, "cispo"):
        return Said(verdict="no counterpart", why=f"{kind} does not clip")
    value = _high(lib)
    taken = "epsilon is taken; " if lib.settings[key] is None else ""
    if kind == "cispo":
        sets = {"objective.clip_low": 1.0, "objective.clip_high": value - 1}
        why = f"{taken}the cap itself there, its distance from 1 here; no lower cap"
        if value < 1:
            why += f". A cap of {value:g} is below 1: it scales nearly every token's weight to {value:g}"
        return Said(verdict="equal", why=why, sets=sets)
    if _is_capped(lib):
        value = min(value, lib.settings.number("delta") - 1)
    why = (taken + _no_clip(lib, value)).rstrip("; ")
    return Said(verdict="equal", why=why, sets={f"{_base(lib)}.clip_high": value})


def _delta(lib: TRL, key: str) -> Said:
    kind = _kind(lib)
    if lib.settings[key] is None:
        return Said(verdict="equal", why="off")
    if kind not in CLIPPED:
        return Said(verdict="no counterpart", why=f"{kind} does not read it")
    delta, high = lib.settings.number(key), 1 + _high(lib)
    if not _is_capped(lib):
        why = f"at delta = 1 + epsilon_high = {delta:g} the ratio is capped there for either sign; left out"
        return Said(verdict="different", why=why)
    sets = {"objective.name": "dual_clip", "objective.c": max(delta, high)}
    why = "" if delta > high else "below 1 + epsilon_high it bounds A > 0, and 1 + epsilon_high bounds A < 0"
    return Said(verdict="equal", why=why, sets=sets)


def _of_kind(kind: str, name: str) -> Handler:
    """A constant of one loss."""

    def handler(lib: TRL, key: str) -> Said:
        if _kind(lib) != kind:
            return Said(verdict="no counterpart", why=f'read with loss_type="{kind}" alone')
        return Said(verdict="equal", sets={name: lib.settings.number(key)})

    return handler


# ---- terms -----------------------------------------------------------------------------------------------------


def _beta(lib: TRL, key: str) -> Said:
    s, kind = lib.settings, _kind(lib)
    if not s.number(key):
        return Said(verdict="equal", why="no KL term")
    averaging = "sequence" if kind in ("grpo", "sapo") else "token"
    estimator = "unbiased" if s.is_on("use_bias_correction_kl") else "k3"
    term = {"name": "reference_kl", "coef": s.number(key), "estimator": estimator, "averaging": averaging}
    verdict, why, factor = _averaging(lib)
    if kind in ("dr_grpo", "luspo"):
        verdict, why = "different", "summed over tokens there; here a mean over tokens"
        factor = f"tokens / (rows x {s['max_completion_length']})" if kind == "dr_grpo" else "tokens / rows"
    elif verdict != "different" and _is_length_weighted(lib):
        verdict, why = "different", "beside luspo, which has another scale than this mean over tokens"
    return Said(verdict=verdict, why=why, factor=factor, adds={"terms": term})


def _bias_correction(lib: TRL, key: str) -> Said:
    s = lib.settings
    if not s.number("beta"):
        return Said(verdict="no counterpart", why="beta is 0")
    if not s.is_on(key):
        return Said(verdict="equal", why="k3", ours='terms: estimator = "k3"')
    ours = 'terms: estimator = "unbiased"'
    if _is_sequence(lib):
        return Said(verdict="different", why="k3 x the sequence ratio; ours is k3 x the token ratio", ours=ours)
    return Said(verdict="equal", why="k3 x the token ratio", ours=ours)


def _entropy_coef(lib: TRL, key: str) -> Said:
    s = lib.settings
    coef = s.number(key)
    if s.is_on("use_adaptive_entropy"):
        return Said(verdict="equal", why="the coefficient to start from", ours=f"terms: coef = {coef:g}")
    if not coef:
        return Said(verdict="equal", why="no entropy term")
    verdict, why = _entropy_mean(lib)
    term = {"name": "entropy_bonus", "coef": coef, "averaging": "token"}
    return Said(verdict=verdict, why=why, adds={"terms": term})


def _entropy_mean(lib: TRL) -> tuple[Verdict, str]:
    if lib.settings.number("top_entropy_quantile") < 1:
        return "different", "theirs averages over the tokens that top_entropy_quantile keeps, ours over all"
    if lib.batch.parts > 1:
        return "different", f"a mean over {lib.batch.parts} micro-batches of token means; ours is over the update"
    return "equal", "mean over the update's tokens"


def _adaptive(lib: TRL, key: str) -> Said:
    s = lib.settings
    if not s.is_on(key):
        return Said(verdict="equal", why="off")
    fields = {ours: s.number(theirs) for theirs, ours in ADAPTIVE.items()}
    verdict, why = _entropy_mean(lib)
    term = {"name": "adaptive_entropy", "coef": s.number("entropy_coef"), **fields}
    return Said(verdict=verdict, why=why, adds={"terms": term})


ADAPTIVE = {
    "entropy_target": "target",
    "entropy_coef_delta": "delta",
    "entropy_coef_min": "coef_min",
    "entropy_coef_max": "coef_max",
}


def _adaptive_field(lib: TRL, key: str) -> Said:
    if not lib.settings.is_on("use_adaptive_entropy"):
        return Said(verdict="no counterpart", why="read with use_adaptive_entropy alone")
    return Said(verdict="equal", ours=f"terms: {ADAPTIVE[key]} = {lib.settings.number(key):g}")


# ---- advantage -------------------------------------------------------------------------------------------------


def _is_gdpo(lib: TRL) -> bool:
    key = "multi_objective_aggregation"
    return lib.settings.choice(key, ("sum_then_normalize", "normalize_then_sum")) == "normalize_then_sum"


def _scale_rewards(lib: TRL, key: str) -> Said:
    value = lib.settings[key]
    value = {True: "group", False: "none"}.get(value, value) if isinstance(value, bool) else value
    if _is_gdpo(lib):
        return Said(verdict="no counterpart", why="normalize_then_sum does not read it")
    if value not in ADVANTAGES:
        raise ValueError(f"{key} is {value!r} (one of {', '.join(ADVANTAGES)}, true, false)")
    if value == "batch" and lib.batch.generations > 1:
        why = f"std over a generation batch, one of {lib.batch.generations} in an update; ours over all of them"
        return Said(verdict="different", why=why, sets={"advantage.name": "lite_ppo"})
    return Said(verdict="equal", why=ADVANTAGES[value][1], sets={"advantage.name": ADVANTAGES[value][0]})


ADVANTAGES = {
    "group": ("group_std", "(R - group mean) / (group std + 1e-4)"),
    "batch": ("lite_ppo", "(R - group mean) / (batch std + 1e-4)"),
    "none": ("group_mean", "R - group mean"),
}


def _aggregation(lib: TRL, key: str) -> Said:
    if not _is_gdpo(lib):
        return Said(verdict="equal", why="rewards are added, then compared in their group")
    if lib.batch.generations > 1:
        why = f"whitened over a generation batch, one of {lib.batch.generations} in an update; ours over all of them"
        return Said(verdict="different", why=why, sets={"advantage.name": "gdpo"})
    return Said(verdict="equal", why="each reward is normalised in its group first", sets={"advantage.name": "gdpo"})


def _reward_weights(lib: TRL, key: str) -> Said:
    weights = lib.settings[key]
    if weights is None:
        return Said(verdict="equal", why="every weight 1")
    if not isinstance(weights, list) or any(isinstance(w, bool) or not isinstance(w, int | float) for w in weights):
        raise ValueError(f"{key} is {weights!r}; it must be a list of numbers")
    if _is_gdpo(lib):
        return Said(verdict="equal", sets={"advantage.weights": [float(weight) for weight in weights]})
    ours = ", ".join(f"rewards.{i}.weight = {weight:g}" for i, weight in enumerate(weights))
    why = "not written: a weight stands beside its reward, and none is named"
    return Said(verdict="different", why=why, ours=ours)


# ---- what is left out, and the engine ----------------------------------------------------------------------------


def _top_entropy(lib: TRL, key: str) -> Said:
    share = lib.settings.number(key)
    if share >= 1:
        return Said(verdict="equal", why="off")
    is_exact = lib.batch.parts == 1 and lib.batch.made <= 1
    why = "theirs takes the quantile of each micro-batch's current entropy, ours of the old policy's over the update"
    return Said(
        verdict="equal" if is_exact else "different",
        why="" if is_exact else why,
        adds={"corrections": {"name": "top_entropy", "share": max(share, 1e-9)}},
    )


def _opsm(lib: TRL, key: str) -> Said:
    if lib.settings[key] is None:
        return Said(verdict="equal", why="off")
    return Said(verdict="equal", adds={"corrections": {"name": "opsm", "delta": lib.settings.number(key)}})


def _bounds(lib: TRL) -> tuple[float | None, float | None]:
    """(clip_min, clip_max), None where there is none; the deprecated cap overrides clip_max."""
    s = lib.settings
    low, high, cap = ENGINE_KEYS
    high = high if s[cap] is None else cap
    return tuple(None if s[key] is None else s.number(key) for key in (low, high))


def _engine_mode(lib: TRL, key: str) -> Said:
    mode = lib.settings.choice(key, ENGINE)
    if not lib.is_engine_corrected:
        return Said(verdict="no counterpart", why="read with use_vllm and vllm_importance_sampling_correction")
    if _kind(lib) == "vespo":
        if not mode.startswith("token"):
            raise ValueError(f'{key} is {mode!r}; with loss_type="vespo" TRL takes token_truncate or token_mask alone')
        correction, _ = _correction(lib, mode)
        why = "vespo takes the weight inside phi there, and multiplies phi by it here"
        return Said(verdict="different", why=why, adds={"corrections": correction})
    correction, missing = _correction(lib, mode)
    verdict = "different" if missing else "equal"
    return Said(verdict=verdict, why=missing or ENGINE[mode], adds={"corrections": correction})


ENGINE = {
    "token_truncate": "min(v, clip_max) per token",
    "token_mask": "v per token, 0 outside the bounds",
    "sequence_truncate": "the product of a sequence's ratios, at most clip_max",
    "sequence_mask": "the product of a sequence's ratios (not GSPO's geometric mean), 0 above clip_max",
}


def _correction(lib: TRL, mode: str) -> tuple[Mapping[str, Any], str]:
    """Our correction, and what it misses."""
    low, high = _bounds(lib)
    cap = 1e9 if high is None else high
    if mode == "token_mask" and low is not None:
        return {"name": "icepop", "low": float(low), "high": cap}, ""
    name = {"token_truncate": "token_tis", "sequence_truncate": "sequence_tis"}.get(mode, mode)
    return {"name": name, "cap": cap}, "" if low is None else f"no lower bound here; theirs is {low:g}"


def _engine_bound(lib: TRL, key: str) -> Said:
    if not lib.is_engine_corrected:
        return Said(verdict="no counterpart", why="read with use_vllm and vllm_importance_sampling_correction")
    if key == "vllm_importance_sampling_clip_max" and lib.settings["vllm_importance_sampling_cap"] is not None:
        return Said(verdict="no counterpart", why="vllm_importance_sampling_cap overrides it")
    return Said(verdict="equal", ours="corrections, see vllm_importance_sampling_mode")


def _engine_correction(lib: TRL, key: str) -> Said:
    if not lib.settings.is_on("use_vllm"):
        return Said(verdict="no counterpart", why="read with use_vllm alone")
    return Said(verdict="equal", why="see vllm_importance_sampling_mode" if lib.settings.is_on(key) else "off")


ENGINE_KEYS = (
    "vllm_importance_sampling_clip_min",
    "vllm_importance_sampling_clip_max",
    "vllm_importance_sampling_cap",
)

KEYS = {
    "loss_type": _loss_type,
    "importance_sampling_level": _level,
    "epsilon": _epsilon,
    "epsilon_high": _epsilon_high,
    "delta": _delta,
    "sapo_temperature_pos": _of_kind("sapo", "objective.tau_pos"),
    "sapo_temperature_neg": _of_kind("sapo", "objective.tau_neg"),
    "vespo_k_pos": _of_kind("vespo", "objective.k_pos"),
    "vespo_lambda_pos": _of_kind("vespo", "objective.lambda_pos"),
    "vespo_k_neg": _of_kind("vespo", "objective.k_neg"),
    "vespo_lambda_neg": _of_kind("vespo", "objective.lambda_neg"),
    "beta": _beta,
    "use_bias_correction_kl": _bias_correction,
    "sync_ref_model": lambda lib, key: Said(
        verdict="no counterpart" if lib.settings.is_on(key) else "equal", why="the reference never moves here"
    ),
    "ref_model_mixup_alpha": nothing("the reference never moves here"),
    "ref_model_sync_steps": nothing("the reference never moves here"),
    "entropy_coef": _entropy_coef,
    "use_adaptive_entropy": _adaptive,
    **dict.fromkeys(ADAPTIVE, _adaptive_field),
    "scale_rewards": _scale_rewards,
    "multi_objective_aggregation": _aggregation,
    "reward_weights": _reward_weights,
    "top_entropy_quantile": _top_entropy,
    "off_policy_mask_threshold": _opsm,
    "vllm_importance_sampling_correction": _engine_correction,
    "vllm_importance_sampling_mode": _engine_mode,
    **dict.fromkeys(ENGINE_KEYS, _engine_bound),
}

DEFAULTS: Mapping[str, Any] = {
    "loss_type": "dapo",
    "importance_sampling_level": "token",
    "epsilon": 0.2,
    "epsilon_high": None,
    "delta": None,
    "sapo_temperature_pos": 1.0,
    "sapo_temperature_neg": 1.05,
    "vespo_k_pos": 2.0,
    "vespo_lambda_pos": 3.0,
    "vespo_k_neg": 3.0,
    "vespo_lambda_neg": 2.0,
    "beta": 0.0,
    "use_bias_correction_kl": True,
    "sync_ref_model": False,
    "ref_model_mixup_alpha": 0.6,
    "ref_model_sync_steps": 512,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "entropy_coef_min": 0.0,
    "entropy_coef_max": 1.0,
    "entropy_coef_delta": 0.005,
    "entropy_target": 0.2,
    "scale_rewards": "group",
    "multi_objective_aggregation": "sum_then_normalize",
    "reward_weights": None,
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_mode": "sequence_mask",
    "vllm_importance_sampling_clip_max": 3.0,
    "vllm_importance_sampling_clip_min": None,
    "vllm_importance_sampling_cap": None,
}


def matters(lib: TRL) -> list[str]:
    """Keys of the loss whose default says what their run does."""
    kind, s = _kind(lib), lib.settings
    keys = ["loss_type", "importance_sampling_level"]
    keys += ["epsilon", "epsilon_high"] if kind in (*CLIPPED, "cispo") else []
    keys += [key for key in KEYS if kind in ("sapo", "vespo") and key.startswith(f"{kind}_")]
    keys += ["beta"] + (["use_bias_correction_kl"] if s.number("beta") else [])
    keys += ["entropy_coef", *ADAPTIVE] if s.is_on("use_adaptive_entropy") else []
    keys += ["multi_objective_aggregation"] + ([] if _is_gdpo(lib) else ["scale_rewards"])
    if s.is_on("use_vllm"):
        keys += ["vllm_importance_sampling_correction", "vllm_importance_sampling_mode"]
        keys += ["vllm_importance_sampling_clip_max"]
    return keys
