"""`gspo check` of a run that samples from servers: are they there, the same model, exact, and do new weights arrive?"""

from dataclasses import replace

import torch

from gspo.doctor import least_noise, other_weights
from gspo.samplers.servers import Servers
from gspo.training.batch import assemble, flatten
from gspo.training.parts import Parts
from gspo.types import Step

FURTHEST = 0.25
"""Mean difference of log-probs above which the two are not one model in two precisions (bf16 against bf16: 0.05)."""
ARRIVED = 4.0
"""Times the difference at the first weights that it may be at the next ones: they have arrived."""
LEAST = 0.01
"""Differences below this are rounding."""


def server_rows(parts: Parts, sampler: Servers, prompts: int) -> list[tuple[str, str, str]]:
    """Name, value, meaning. Raises ValueError, in one line, for the first thing that is wrong."""
    sampler.sync_weights(parts.policy, 0)  # reachable, endpoints, model, tokenizer, nobody else's
    rows = []
    for server in sampler.servers:
        facts = server.dialect.facts(server.link)
        rows.append(
            (str(server.link), f"version {facts.version}", f"model {facts.model}; weights of version 0 are there")
        )
    mean, largest, step = difference(parts, prompts)
    rows.append(("its log-probs against the policy's", f"{mean:.2g}, at most {largest:.2g}", "on the same tokens"))
    if mean > FURTHEST:
        raise ValueError(
            f"log-probs of {sampler.servers[0].link} and of the policy differ by {mean:.2g} on the mean: another "
            "model, another dtype, or log-probs of something else than what it draws from"
        )
    with other_weights(parts, least_noise(parts, step, mean)):
        sampler.sync_weights(parts.policy, 1)
        after, largest, _ = difference(parts, prompts)
    if after > max(ARRIVED * mean, LEAST):
        raise ValueError(
            f"after an update the log-probs of {sampler.servers[0].link} and of the policy differ by {after:.2g} on "
            f"the mean ({mean:.2g} before): it keeps a part of its old weights; start it by `gspo serve MODEL`"
        )
    rows.append(("the same after an update", f"{after:.2g}, at most {largest:.2g}", "weights arrive"))
    sampler.sync_weights(parts.policy, 2)
    return rows


def difference(parts: Parts, prompts: int) -> tuple[float, float, Step]:
    """(mean, largest) difference of the log-probs of a few completions by sampler and policy, and their step."""
    assert not parts.is_offline
    source = replace(parts.source, failure_limit=1.0)  # type: ignore[type-var]
    groups = source.wave(source.next_rows(0, prompts), step=0).groups
    rows = flatten(groups, torch.zeros(sum(len(group.rollouts) for group in groups)), False)
    step = assemble(rows, parts.policy.network.device)
    assert step.sampler_logprobs is not None
    gaps = (parts.policy.logprobs(step).logprobs - step.sampler_logprobs)[step.mask].abs()
    return gaps.mean().item(), gaps.max().item(), step
