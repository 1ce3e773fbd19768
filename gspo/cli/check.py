"""`gspo check`: everything a run needs, tried for real, before its first step."""

import time
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table

from gspo.cli.idle import idle_settings
from gspo.collectors.refill import has_spread
from gspo.config import RunConfig
from gspo.samplers.base import Closes
from gspo.samplers.config import ServerConfig
from gspo.threads import choose_threads
from gspo.training.batch import MiniBatch, assemble, flatten
from gspo.training.loop import estimate
from gspo.training.parts import Parts, build, frozen_reference
from gspo.training.update import Mismatch, is_sampler_sound, measure_mismatch, prepare

PROMPTS = 4
SERVER_PROMPTS = 2
AFTER_SERVERS = 2
"""Version of the policy's weights once servers have been tried with others."""


def check_run(config: RunConfig, terminal: Console, prompts: int = PROMPTS) -> None:
    """Load the model, data and rewards; sample a few groups; time a step; name settings without effect."""
    parts = build(config, report=lambda text: terminal.print(text, soft_wrap=True))
    try:
        threads = choose_threads(config.threads, sum(p.numel() for p in parts.loaded.model.parameters()))
        torch.set_num_threads(threads.number)
        terminal.print(f"data: {parts.dataset.reading}", soft_wrap=True)
        terminal.print(f"model: {parts.loaded.source} on {parts.policy.network.device}, {threads}")
        if isinstance(config.sampler, ServerConfig):
            terminal.print(_servers(parts))
        terminal.print(_measure(parts, min(prompts, config.prompts_per_step)))
    finally:
        parts.rewards.close()
        if isinstance(parts.sampler, Closes):
            parts.sampler.close()
    idle = idle_settings(config)
    terminal.print("settings without effect here:" if idle else "every setting has an effect here")
    for line in idle:
        terminal.print(f"  - {line}", soft_wrap=True, highlight=False)


def _servers(parts: Parts) -> Table:
    from gspo.cli.check_servers import server_rows
    from gspo.samplers.servers import Servers

    assert isinstance(parts.sampler, Servers)
    table = Table("server", "value", "meaning", box=None)
    for row in server_rows(parts, parts.sampler, SERVER_PROMPTS):
        table.add_row(*row)
    return table


def _measure(parts: Parts, prompts: int) -> Table:
    parts.sampler.sync_weights(parts.policy, AFTER_SERVERS)
    config = parts.config
    source = parts.source if parts.is_offline else replace(parts.source, failure_limit=1.0)  # type: ignore[type-var]
    started = time.perf_counter()
    wave = source.wave(source.next_rows(0, prompts), step=0)
    sampled = time.perf_counter() - started
    rollouts = [rollout for group in wave.groups for rollout in group.rollouts]
    scored = [r.reward for r in rollouts if r.reward == r.reward]
    cut = sum(r.completion.finish_reason == "length" for r in rollouts)
    table = Table("measured on a few groups", "value", "meaning", box=None)
    row = lambda name, value, meaning: table.add_row(name, value, meaning)  # noqa: E731
    row(
        "groups x completions",
        f"{prompts} x {len(rollouts) / prompts:g}",
        "from the data" if parts.is_offline else "sampled with the real model",
    )
    if scored:
        row("reward", f"{sum(scored) / len(scored):.3f}", f"from {min(scored):.3g} to {max(scored):.3g}")
    mixed = sum(has_spread(group) for group in wave.groups)
    row("groups with mixed rewards", f"{mixed} of {prompts}", "only these have a gradient")
    row("cut by the token limit", f"{cut / len(rollouts):.0%}", "of completions")
    failed = sum(status in ("error", "timeout", "nan") for r in rollouts for status in r.statuses)
    row("reward failures", str(failed), wave.errors[0] if wave.errors else "none")
    updated = _time_update(parts, wave.groups, table)
    share = config.prompts_per_step / prompts
    row(
        "seconds per step, expected",
        f"{share * (sampled + config.epochs * updated):.1f}",
        "sampling, rewards, updates",
    )
    first = rollouts[0]
    row("a completion", first.text[:60], f"reward {first.reward:.3g}")
    return table


def _time_update(parts: Parts, groups: tuple, table: Table) -> float:
    """Seconds of forward and backward over these groups; the weights stay as they are."""
    reference = frozen_reference(parts) if parts.needs_reference else None
    advantage, _ = estimate(parts, groups, reference, parts.advantage.init())
    rows = flatten(groups, advantage, parts.config.collector.drop_truncated)
    step = assemble(rows, parts.policy.network.device)
    sound = False
    if parts.sampler.scores == "none":
        table.add_row("noise of the log-ratio", "none", "old log-probs are the policy's, with the same random draws")
    else:
        mismatch = measure_mismatch(parts.terms, step, parts.policy.logprobs(step).logprobs)
        sound = is_sampler_sound(mismatch)
        for row in () if parts.is_offline else noise_rows(mismatch):
            table.add_row(*row)
    started = time.perf_counter()
    whole = MiniBatch(samples=rows, step=step)
    (batch,) = prepare([whole], parts.policy, parts.terms, reference, rescore_old=not sound)
    weights = [term.weights(batch.step, term.counts(batch.step)) for term in parts.terms]
    parts.policy.forward_backward(batch.step, weights, parts.terms)
    parts.policy.weights.clear()
    return time.perf_counter() - started


def noise_rows(mismatch: Mismatch) -> list[tuple[str, str, str]]:
    """What the noise of the log-ratio means for this objective: name, value, meaning."""
    whose = "sampler" if is_sampler_sound(mismatch) else "policy"
    third = f"(a third of the objective's band is {mismatch.band / 3:.2g})"
    rows = [
        (
            "noise of the log-ratio at equal weights",
            f"{mismatch.ratio_std:.2g}",
            f'old_logprobs = "auto" takes the {whose}\'s {third}',
        )
    ]
    if mismatch.ratio_std > mismatch.band:
        rows.append(
            (
                "noise against the band",
                f"{mismatch.ratio_std / mismatch.band:.0f}x",
                "rounding is wider than the bounds and takes part in what later updates clip: float32, or wider bounds",
            )
        )
    return rows
