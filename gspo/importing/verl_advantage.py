"""verl's advantage estimators, and the KL inside their reward, as ours."""

from collections.abc import Mapping
from typing import Any

from gspo.importing.report import Said, nothing
from gspo.importing.verl_loss import mode_of, name_of
from gspo.importing.verl_step import (
    ESTIMATOR,
    N,
    Verl,
    gives_units,
    is_k1_in_reward,
)

ESTIMATORS = (
    *("gae", "grpo", "grpo_vectorized", "grpo_passk", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "remax"),
    *("rloo", "rloo_vectorized", "opo", "gpg", "gdpo", "optimal_token_baseline", "tir_optimal_token_baseline"),
)


def _estimator(lib: Verl, key: str) -> Said:
    s = lib.settings
    name = s.choice(key, ESTIMATORS)
    if name in ("gae", "remax"):
        default = "" if key in s.given else " (verl's default)"
        needs = "a critic" if name == "gae" else "a greedy completion of every prompt as its baseline, and no critic"
        raise ValueError(
            f"{key} is {name}{default}: it needs {needs}, and gspo has neither; set {key}=grpo, or another of "
            f"{', '.join(sorted(ADVANTAGES))}"
        )
    if name.startswith("grpo") and name != "grpo_passk":
        return _grpo(lib)
    return ADVANTAGES[name](lib)


def _grpo(lib: Verl) -> Said:
    has_std = lib.settings.is_on("algorithm.norm_adv_by_std_in_grpo")
    sets = {"advantage.name": "group_std", "advantage.eps": 1e-6} if has_std else {"advantage.name": "group_mean"}
    what = "(R - group mean) / (group std + 1e-6)" if has_std else "R - group mean"
    return _in_groups(lib, Said(verdict="equal", why=what, sets=sets))


def _in_groups(lib: Verl, said: Said) -> Said:
    """Estimators that compare a group: a group of one keeps its reward there and gets 0 here."""
    if lib.settings.count(N) > 1:
        return said
    why = f"{N} = 1: a group of one keeps its reward as advantage there, and gets 0 here (nothing was compared)"
    return Said(verdict="different", why=why, sets=said.sets)


def _rloo(lib: Verl) -> Said:
    return _in_groups(lib, Said(verdict="equal", why="R - mean of the others", sets={"advantage.name": "rloo"}))


def _opo(lib: Verl) -> Said:
    sets = {"advantage.name": "opo", "advantage.off_policy": lib.batch.made > 1}
    return _in_groups(lib, Said(verdict="equal", why="the length-weighted baseline", sets=sets))


def _token_baseline(lib: Verl) -> Said:
    sets = {"advantage.name": "opo", "advantage.off_policy": lib.batch.made > 1}
    return Said(verdict="different", why="a baseline per token there; opo has one per sequence", sets=sets)


def _passk(lib: Verl) -> Said:
    sets = {"advantage.name": "pass_at_k", "advantage.k": max(1, lib.settings.count(N) - 1)}
    why = "theirs gives the best completion its lead over the second and the rest 0; ours is a mean over sets of k"
    return Said(verdict="different", why=why, sets=sets)


def _gpg(lib: Verl) -> Said:
    factor = "rows of the rollout batch / those with a reward other than 0"
    said = Said(
        verdict="equal up to a scale", why="R - group mean", factor=factor, sets={"advantage.name": "group_mean"}
    )
    return _in_groups(lib, said)


def _reinforce_pp(lib: Verl) -> Said:
    s = lib.settings
    sets: dict[str, Any] = {"advantage.name": "reinforce_pp"}
    if gives_units(lib) and name_of(lib, mode_of(lib)) in PER_ROW:
        why = f"an advantage per token; {name_of(lib, mode_of(lib))} takes one per sequence: gamma and KL are left out"
        return Said(verdict="different", why=why, sets=sets)
    sets["advantage.gamma"] = float(s.number("algorithm.gamma"))
    if s.is_on("algorithm.use_kl_in_reward") and is_k1_in_reward(lib):
        sets["advantage.kl_coef"] = s.number("algorithm.kl_ctrl.kl_coef")
    return Said(verdict="equal", why="returns whitened over the batch's tokens", sets=sets)


PER_ROW = ("luspo", "gmpo")
"""Objectives of ours that take one advantage per sequence, and have no other form."""


def _gdpo(lib: Verl) -> Said:
    weights = lib.settings["algorithm.gdpo_reward_weights"]
    sets: dict[str, Any] = {"advantage.name": "gdpo", "advantage.eps": 1e-6, "advantage.whiten": "token"}
    if weights is not None:
        sets["advantage.weights"] = [float(weight) for weight in weights]
    if not lib.settings.is_on("algorithm.norm_adv_by_std_in_grpo"):
        return Said(verdict="different", why="without std in each group there; ours divides by it", sets=sets)
    return _in_groups(lib, Said(verdict="equal", why="each reward normalised in its group, then whitened", sets=sets))


def _baseline(lib: Verl) -> Said:
    why = "R - group mean, whitened over the batch's tokens"
    return _in_groups(lib, Said(verdict="equal", why=why, sets={"advantage.name": "reinforce_pp_baseline"}))


ADVANTAGES = {
    "grpo": _grpo,
    "grpo_passk": _passk,
    "rloo": _rloo,
    "rloo_vectorized": _rloo,
    "opo": _opo,
    "optimal_token_baseline": _token_baseline,
    "tir_optimal_token_baseline": _token_baseline,
    "gpg": _gpg,
    "gdpo": _gdpo,
    "reinforce_plus_plus": _reinforce_pp,
    "reinforce_plus_plus_baseline": _baseline,
}


def _norm_by_std(lib: Verl, key: str) -> Said:
    if lib.settings[ESTIMATOR] not in ("grpo", "grpo_vectorized", "gdpo", "grpo_passk"):
        return Said(verdict="no counterpart", why=f"{lib.settings[ESTIMATOR]} does not read it")
    return Said(verdict="equal", why=f"see {ESTIMATOR}")


def _gamma(lib: Verl, key: str) -> Said:
    if lib.settings[ESTIMATOR] != "reinforce_plus_plus":
        return Said(verdict="no counterpart", why=f"{lib.settings[ESTIMATOR]} does not read it")
    return Said(verdict="equal", why=f"see {ESTIMATOR}")


def _kl_in_reward(lib: Verl, key: str) -> Said:
    s = lib.settings
    if not s.is_on(key):
        return Said(verdict="equal", why="no KL in the reward")
    if s[ESTIMATOR] == "reinforce_plus_plus" and is_k1_in_reward(lib):
        return Said(verdict="equal", why=f"see {ESTIMATOR}")
    why = "KL inside the reward is here for reinforce_pp alone, with kl_penalty=kl and a fixed coefficient; left out"
    return Said(verdict="different", why=why)


def _in_reward(lib: Verl, key: str) -> Said:
    if not lib.settings.is_on("algorithm.use_kl_in_reward"):
        return Said(verdict="no counterpart", why="use_kl_in_reward is off")
    return Said(verdict="equal", why="see algorithm.use_kl_in_reward")


def _gdpo_key(lib: Verl, key: str) -> Said:
    if lib.settings[ESTIMATOR] != "gdpo":
        return Said(verdict="no counterpart", why="read with adv_estimator=gdpo alone")
    if key.endswith("weights"):
        return Said(verdict="equal", ours="advantage.weights")
    return Said(verdict="different", why="each part is a reward function of its own here: one [[rewards]] for each")


KEYS = {
    ESTIMATOR: _estimator,
    "algorithm.norm_adv_by_std_in_grpo": _norm_by_std,
    "algorithm.gamma": _gamma,
    "algorithm.lam": nothing("read by gae alone"),
    "algorithm.use_kl_in_reward": _kl_in_reward,
    "algorithm.kl_penalty": _in_reward,
    "algorithm.kl_ctrl.type": _in_reward,
    "algorithm.kl_ctrl.kl_coef": _in_reward,
    "algorithm.kl_ctrl.horizon": nothing("the coefficient is fixed"),
    "algorithm.kl_ctrl.target_kl": nothing("the coefficient is fixed"),
    "algorithm.gdpo_reward_keys": _gdpo_key,
    "algorithm.gdpo_reward_weights": _gdpo_key,
}

DEFAULTS: Mapping[str, Any] = {
    ESTIMATOR: "gae",
    "algorithm.norm_adv_by_std_in_grpo": True,
    "algorithm.gamma": 1.0,
    "algorithm.lam": 1.0,
    "algorithm.use_kl_in_reward": False,
    "algorithm.kl_penalty": "kl",
    "algorithm.kl_ctrl.type": "fixed",
    "algorithm.kl_ctrl.kl_coef": 0.001,
}
