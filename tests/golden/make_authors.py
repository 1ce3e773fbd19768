"""Provenance of authors.json: what the authors' own code computes on fixed tensors. Not a test.

    python3 -m venv /tmp/authorsenv && /tmp/authorsenv/bin/pip install torch==2.13.0 numpy scipy
    OMP_NUM_THREADS=1 /tmp/authorsenv/bin/python tests/golden/make_authors.py CLONES

CLONES is a folder with a clone of each repository of SOURCES, under the repository's own name. A function is
read out of the file of the commit given here by its syntax tree and executed alone, with the names it uses; of a
training loop, the statements of its loss. No line of theirs is in this repository, whatever its licence.
"""

import ast
import contextlib
import dataclasses
import datetime
import io
import itertools
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
import typing
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from fixed_inputs import INPUTS, MAX_LENGTH, SCORED, listed
from scipy.special import comb

TARGET = Path(__file__).with_name("authors.json")

SOURCES = {
    # name: (repository, commit)
    "rebel": ("ZhaolinGao/REBEL", "4ad7c11d0ca716e55cfd3a425a176c01c8dfac91"),
    "trpa": ("XueruiSu/Trust-Region-Preference-Approximation", "f372585ed6ec230aa354feb9c8e24e970b615846"),
    "vespo": ("FloyedShen/VESPO", "aa1f3045c3462bba07518dc112693a8bb3183ed2"),
    "gmpo": ("callsys/GMPO", "205b2bf412f150cf96c29b33273b81bcd1a9b20f"),
    "opo": ("microsoft/LMOps", "4f2a9deb5f08e459fd44c2e4792344d78ca89fc3"),
    "gdpo": ("NVlabs/GDPO", "b080e63d0126870ad08acc8ebc3f04b728175a9e"),
    "dppo": ("sail-sg/Stable-RL", "c6af1d119c0fe30d16dd9a837d35fdf695acd226"),
    "prime_rl": ("PrimeIntellect-ai/prime-rl", "559b44772e471d1538537b8805cc77f3824a5e64"),
    "pass_at_k": ("RUCAIBox/Passk_Training", "c3ba575ecb31f47fd9f5c43b18c081d4a295f783"),
    "skywork": ("SkyworkAI/Skywork-OR1", "64e96afa213ae89d0ad21932106d3b8aafe9ace2"),
}
CORE = "verl/trainer/ppo/core_algos.py"
MASKED = "verl/utils/torch_functional.py"


class Clone:
    """One repository at its commit, read with git."""

    def __init__(self, folder, name):
        self.repository, self.commit = SOURCES[name]
        self.place = folder / self.repository.partition("/")[2]

    def tree(self, path):
        command = ["git", "-C", self.place, "show", f"{self.commit}:{path}"]
        return ast.parse(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def functions(self, path, *names, **known):
        """The named functions and classes of a file, without decorators, as a namespace that also knows `known`."""
        found = [n for n in self.tree(path).body if getattr(n, "name", None) in names]
        assert len(found) == len(names), (path, names)
        for node in found:
            if isinstance(node, ast.FunctionDef):
                node.decorator_list = []
        return SimpleNamespace(**executed(found, **known))

    def provenance(self, path, what):
        return {"repository": self.repository, "commit": self.commit, "file": path, "what": what}


def executed(statements, **known):
    names = {"torch": torch, "np": np, "math": math, "defaultdict": defaultdict, **vars(typing), **known}
    code = compile(ast.Module(body=statements, type_ignores=[]), "<theirs>", "exec")
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, names)
    return names


def quietly(function, *args, **kwargs):
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*args, **kwargs)


def blocks(tree):
    """Every list of statements in a file."""
    for node in ast.walk(tree):
        for field in ("body", "orelse"):
            block = getattr(node, field, None)
            if isinstance(block, list) and block:
                yield block


def assigned(statement):
    """The name that a statement assigns to, if it is one."""
    target = statement.targets[0] if isinstance(statement, ast.Assign) else None
    return target.id if isinstance(target, ast.Name) else None


def leaf_of(x):
    return x["logprobs"].clone().requires_grad_(True)


def result(loss, leaf):
    loss.backward()
    assert math.isfinite(loss.item()) and leaf.grad.isfinite().all()
    return {"loss": loss.item(), "gradient": leaf.grad.tolist()}


def rebel(clone):
    """The loss statements of the training loop, on three pairs; the second half of the rows are the partners."""
    path, x = "src/tldr/rebel.py", INPUTS["pairs"]
    (block,) = (b for b in blocks(clone.tree(path)) if any(assigned(s) == "reg_diff" for s in b))
    names = [assigned(s) for s in block]
    first = max(i for i, n in enumerate(names) if n == "new_logprobs")  # the sum over tokens
    statements = block[first : names.index("loss") + 1]
    order = torch.tensor([0, 2, 4, 1, 3, 5])
    cases = {}
    for eta in (1.0, 0.25):
        leaf = leaf_of(x)
        names = executed(
            statements,
            new_logprobs=leaf[order],
            mb_logprobs=(x["old_logprobs"] * x["mask"]).sum(-1)[order],
            mb_seq_mask=x["mask"][order],
            mb_rewards=x["rewards"][order],
            args=SimpleNamespace(per_device_train_batch_size=3, rebel=SimpleNamespace(eta=eta)),
        )
        cases[f"eta_{eta}"] = {"settings": {"eta": eta}, "results": {"pairs": result(names["loss"], leaf)}}
    return {**clone.provenance(path, "statements of the training loop"), "cases": cases}


def trpa(clone):
    masked = clone.functions(MASKED, "masked_mean")
    with tempfile.TemporaryDirectory() as folder:
        theirs = clone.functions(
            CORE, "compute_pairwise_policy_loss", "calc_h_high_low", "kl_penalty",
            verl_F=masked, time=time, os=__import__("os"), SAVE_DIR=folder, EXP_NAME="here",
        )  # fmt: skip
        cases = {}
        for name, levels, key in (
            ("three_levels", [1, 3, 2, 1, 3, 3], "calm_pairs"),
            ("two_levels", [1, 2, 2, 1, 2, 2], "calm_pairs"),
            ("a_group_of_one_level", [2, 2, 2, 1, 2, 2], "calm_pairs"),
            ("no_pairs", [1, 1, 1, 2, 2, 2], "calm_pairs"),
            ("clamped_kl", [1, 3, 2, 1, 3, 3], "pairs"),
        ):
            x, leaf = INPUTS[key], leaf_of(INPUTS[key])
            mask = x["mask"].long()
            preference, *_ = quietly(
                theirs.compute_pairwise_policy_loss,
                log_prob=leaf, ref_log_prob=x["reference_logprobs"], advantages=None, eos_mask=mask, beta=0.1,
                preference_levels=torch.tensor(levels), anisotropy=2.5, id_tensor=x["group_of_three"].float(),
            )  # fmt: skip
            penalty = masked.masked_mean(theirs.kl_penalty(leaf, x["old_logprobs"], "low_var_kl"), mask)
            made = result(preference + 1e-3 * penalty, leaf)  # use_sqrt_trkl=False, tr_kl_loss_coef=0.001
            made["preference_loss"] = preference.item()
            settings = {"levels": levels, "beta": 0.1, "kappa": 2.5, "kl_coef": 1e-3}
            cases[name] = {"settings": settings, "results": {key: made}}
    return {**clone.provenance(CORE, "compute_pairwise_policy_loss, kl_penalty"), "cases": cases}


def token_mean(clone, path=CORE):
    masked = clone.functions(MASKED, "masked_sum", "masked_mean")
    return masked, clone.functions(path, "agg_loss", verl_F=masked).agg_loss


def vespo(clone):
    path = "recipe/vespo/code/core_algos.py"
    masked, agg_loss = token_mean(clone)
    theirs = clone.functions(path, "compute_policy_loss_vespo", agg_loss=agg_loss, verl_F=masked)
    results = {}
    for key in ("far", "wild"):
        x, leaf = INPUTS[key], leaf_of(INPUTS[key])
        mask = x["mask"].long()
        loss, _ = theirs.compute_policy_loss_vespo(
            x["old_logprobs"], leaf, x["advantage"][:, None].expand(mask.shape), mask,
            config=SimpleNamespace(policy_loss={}),
        )  # fmt: skip
        results[key] = result(loss, leaf)
    cases = {"default": {"settings": {}, "results": results}}
    return {**clone.provenance(path, "compute_policy_loss_vespo"), "cases": cases}


def is_mode(node, mode):
    return isinstance(node, ast.If) and ast.unparse(node.test) == f"self.args.critic_type_modify == '{mode}'"


def gmpo(clone):
    """The branch of the training loop, which takes one row at a time; the mean over rows is ours."""
    path, x = "train_zero_math_gmpo.py", INPUTS["pairs"]
    branches = [n for n in ast.walk(clone.tree(path)) if is_mode(n, "gmpo")]
    (branch,) = (n for n in branches if "pg_losses" in map(assigned, n.body))
    leaf, losses = leaf_of(x), []
    for i in range(len(x["mask"])):
        names = executed(
            branch.body,
            self=SimpleNamespace(args=SimpleNamespace(cliprange=0.4)),
            new_logps=leaf[i : i + 1],
            mb_logps=x["old_logprobs"][i : i + 1],
            mb_response_masks=x["mask"][i : i + 1],
            mb_advantage=x["advantage"][i : i + 1],
            stats=defaultdict(list),
            infos={},
        )
        losses.append(names["loss"].squeeze())
    made = result(torch.stack(losses).mean(), leaf)
    cases = {"default": {"settings": {"cliprange": 0.4}, "results": {"pairs": made}}}
    return {**clone.provenance(path, "branch critic_type_modify=gmpo, row by row"), "cases": cases}


def token_rewards(values, length, mask):
    """[B,9]: the reward on the row's last token, as verl's reward managers put it."""
    out = torch.zeros(mask.shape, dtype=torch.float64)
    out[torch.arange(len(length)), length - 1] = values
    return out


def scored_batch():
    given = SCORED["complete"]
    length = given["length"]
    mask = (torch.arange(MAX_LENGTH)[None] < length[:, None]).long()
    return given, length, mask, np.array(given["group"].tolist())


def opo(clone):
    path = "opo/verl/trainer/ppo/core_algos.py"
    given, length, mask, index = scored_batch()
    theirs = clone.functions(path, "compute_opo_outcome_advantage")
    total = token_rewards(given["rewards"].sum(dim=1), length, mask)
    cases = {}
    for baseline in ("optimal", "optimal_batch"):
        advantage, _ = theirs.compute_opo_outcome_advantage(total, mask, index, value_baseline=baseline)
        cases[baseline] = {"advantage": advantage.tolist()}
    return {**clone.provenance(path, "compute_opo_outcome_advantage"), "cases": cases}


def gdpo(clone):
    trl = "trl-GDPO/trl-0.18.0-gdpo/trl/trainer/grpo_trainer.py"
    (branch, *_) = (
        n for n in ast.walk(clone.tree(trl))
        if isinstance(n, ast.If) and "rewards_per_func_filter" in {assigned(s) for s in n.body}
    )  # fmt: skip
    cases = {}
    for name, weights in (("trl_fork", [1.0, 1.0]), ("trl_fork_weighted", [1.0, 0.25])):
        names = executed(
            branch.body,
            self=SimpleNamespace(reward_weights=torch.tensor(weights, dtype=torch.float64), num_generations=3),
            rewards_per_func=SCORED["complete"]["rewards"],
            device="cpu",
        )
        cases[name] = {"file": trl, "settings": {"weights": weights}, "advantage": names["advantages"].tolist()}
    given, length, mask, index = scored_batch()
    masked = clone.functions("verl-GDPO/" + MASKED, "masked_mean", "masked_var", "masked_whiten")
    core = clone.functions("verl-GDPO/" + CORE, "compute_grpo_outcome_advantage", verl_F=masked)
    path = "verl-GDPO/verl/trainer/ppo/ray_trainer.py"
    theirs = clone.functions(
        path, "compute_advantage", core_algos=core, masked_whiten=masked.masked_whiten, DataProto=None
    )
    columns = [token_rewards(given["rewards"][:, k], length, mask) for k in (0, 1)]
    data = SimpleNamespace(
        batch={
            "token_level_scores_correctness": columns[0],
            "token_level_scores_format": columns[1],
            "responses": mask,
            "attention_mask": torch.nn.functional.pad(mask, (2, 0), value=1),
        },
        non_tensor_batch={"uid": index},
    )
    theirs.compute_advantage(data, "gdpo")
    cases["verl_fork"] = {"file": path, "settings": {}, "advantage": data.batch["advantages"].tolist()}
    return {**clone.provenance(trl, "branch apply_gdpo; compute_advantage of the verl fork"), "cases": cases}


def dppo(clone):
    x = INPUTS["wild"]
    masked, agg_loss = token_mean(clone)
    theirs = clone.functions(
        CORE, "compute_policy_loss_with_mask", "_compute_token_mask_for_policy_loss",
        verl_F=masked, agg_loss=agg_loss, ActorConfig=None,
    )  # fmt: skip
    cases = {}
    for name, mode, bound, cap in (
        ("tv", "dppo_binary_tv", 0.15, 20.0),
        ("kl", "dppo_binary_kl", 0.05, 20.0),
        ("tv_cap", "dppo_binary_tv", 0.15, 3.0),
    ):
        leaf, mask = leaf_of(x), x["mask"].long()
        settings = {"clip_ratio": bound, "clip_ratio_low": bound, "clip_ratio_high": bound, "clip_ratio_c": cap}
        config = SimpleNamespace(**settings, get=settings.get, global_batch_info={})
        zeros = torch.zeros_like(leaf)  # the top-k divergences and the entropy, which only its metrics read
        loss, _ = theirs.compute_policy_loss_with_mask(
            x["old_logprobs"], leaf, x["advantage"][:, None].expand(mask.shape), mask, config=config,
            rollout_log_prob=x["old_logprobs"], topk_kl=zeros, topk_tv=zeros, entropy=zeros, loss_mode=mode,
        )  # fmt: skip
        cases[name] = {"settings": {"loss_mode": mode, **settings}, "results": {"wild": result(loss, leaf)}}
    return {**clone.provenance(CORE, "compute_policy_loss_with_mask"), "cases": cases}


def prime_rl(clone):
    """The default loss, a sum per row; divided by the tokens of the batch as its caller does."""
    path, x = "src/prime_rl/trainer/rl/loss.py", INPUTS["wild"]
    theirs = clone.functions(
        path, "default_loss_fn", "compute_importance_ratio_and_mismatch_kl", "_safe_mean", "LossOutputs",
        Tensor=torch.Tensor, Float=defaultdict(object), dataclass=dataclasses.dataclass, LossInputs=None,
        DefaultLossConfig=None,
    )  # fmt: skip
    cases = {}
    for name, kl in (("without_kl", 0.0), ("default", 1e-3)):
        leaf, losses = leaf_of(x), []
        settings = {"dppo_mask_low": 0.2, "dppo_mask_high": 0.2, "adv_tau": 1.0, "kl_tau": kl}
        for i, mask in enumerate(x["mask"]):
            inputs = SimpleNamespace(
                trainer_logprobs=leaf[i], inference_logprobs=x["old_logprobs"][i], loss_mask=mask,
                advantages=x["advantage"][i].expand(mask.shape), loss_weights=None,
            )  # fmt: skip
            losses.append(theirs.default_loss_fn(inputs, SimpleNamespace(**settings)).loss)
        loss = torch.stack(losses).sum() / x["mask"].sum()
        cases[name] = {"settings": settings, "results": {"wild": result(loss, leaf)}}
    return {**clone.provenance(path, "default_loss_fn"), "cases": cases}


def pass_at_k(clone):
    path, cases = "code/passk_adv.py", {}
    theirs = clone.functions(path, "calc_adv", comb=comb)
    for size, k in ((4, 2), (6, 1), (6, 3), (8, 4)):
        for right in range(size + 1):
            rewards = np.array([1.0] * right + [0.0] * (size - right))
            cases[f"{right}_of_{size}_k_{k}"] = {
                "settings": {"k": k}, "rewards": rewards.tolist(), "advantage": theirs.calc_adv(rewards, k).tolist()
            }  # fmt: skip
    return {**clone.provenance(path, "calc_adv"), "cases": cases}


def skywork(clone):
    """The coefficient and whether it applies, before each update, for entropies that cross the target."""
    theirs = clone.functions(CORE, "EntController")
    settings = {"init_ent_coef": 0.001, "max_ent_coef": 0.003, "min_ent_coef": 0.0, "delta_ent_coef": 0.001,
                "target_ent": 0.2}  # fmt: skip
    control, seen = theirs.EntController(**settings, use_adapt_ent=True), []
    for entropy in (0.5, 0.1, 0.1, 0.15, 0.1, 0.2, 0.3, 0.1):
        before = {"coefficient": control.value, "applies": control.entropy_loss_enabled}
        control.update(entropy)
        seen.append({**before, "entropy": entropy, "after": control.value})
    cases = {"controller": {"settings": settings, "updates": seen}}
    return {**clone.provenance(CORE, "EntController"), "cases": cases}


def main():
    folder = Path(sys.argv[1])
    makers = (rebel, trpa, vespo, gmpo, opo, gdpo, dppo, prime_rl, pass_at_k, skywork)
    theirs = {make.__name__: make(Clone(folder, make.__name__)) for make in makers}
    packages = ("torch", "numpy", "scipy")
    TARGET.write_text(
        json.dumps(
            {
                "what": "losses and advantages of the authors' own code on fixed tensors; see make_authors.py",
                "date": datetime.date.today().isoformat(),
                "versions": {"python": platform.python_version(), **{p: metadata.version(p) for p in packages}},
                "max_length": MAX_LENGTH,
                "inputs": listed({key: INPUTS[key] for key in ("far", "wild", "pairs", "calm_pairs")}),
                "scored": listed({"complete": SCORED["complete"]}),
                "authors": theirs,
            }
        )
        + "\n"
    )
    cases = list(itertools.chain.from_iterable(t["cases"] for t in theirs.values()))
    print(f"wrote {TARGET.name}: {len(theirs)} repositories, {len(cases)} cases")


if __name__ == "__main__":
    main()
