"""The layouts of `gspo plan`: what goes through the network under each, and which one `auto` takes."""

import torch
from rich.table import Table
from transformers import AutoModelForCausalLM

from gspo.cli.memory import first_prompts, model_configuration
from gspo.config import RunConfig
from gspo.policies.costs import NetworkShape, known_refusal, network_shape
from gspo.policies.layouts import Candidate, candidates
from gspo.policies.prefixes import Ids


def layout_table(config: RunConfig) -> Table | None:
    """None where the model's configuration or the data is not at hand without downloading."""
    found, prompts = model_configuration(config), first_prompts(config)
    if found is None or not prompts:
        return None
    limit, group = config.sampling.max_completion_tokens, config.group_size
    mini = prompts[: max(1, config.prompts_per_step // config.updates_per_step)]
    table = Table(
        "layout",
        "tokens",
        "padding",
        "cost",
        "",
        title=f"one update: {len(mini)} prompts of {_lengths(mini)} tokens, x {group} completions of {limit}",
        caption="cost: multiply-adds and kernel calls, of padded rows"
        + ("; compiled: one or two minutes before the first update" if config.compile else "")
        + ("; layers computed twice: a third more" if config.checkpoint_activations else ""),
    )
    refusal = known_refusal(found)
    tried = compared(mini, group, limit, _shape(found), refusal)
    base = tried[0]
    allowed = [c for c in tried if config.layout == "auto" or c.name.split(",")[0] == config.layout]
    chosen = min(allowed, key=lambda candidate: candidate.cost)
    real = sum(len(p) + limit - 1 for p in mini for _ in range(group))
    for candidate in tried:
        carried = real if candidate.packed is None else len(candidate.packed)
        table.add_row(
            candidate.name,
            f"{candidate.tokens:,}",
            f"{1 - carried / candidate.tokens:.0%}",
            f"{candidate.cost / base.cost:.2f}",
            ("chosen: the cheapest" if config.layout == "auto" else "set") if candidate is chosen else "",
        )
    if refusal:
        table.caption = f"only padded rows: {refusal}"
    return table


def compared(prompts: list[Ids], group: int, limit: int, shape: NetworkShape, refusal: str) -> list[Candidate]:
    """Every layout of completions that all reach the limit and have nothing in common; padded rows first."""
    rows = [prompt for prompt in prompts for _ in range(group)]
    completions = [(-1 - i,) * limit for i in range(len(rows))]
    return candidates("padded" if refusal else "auto", rows, completions, shape, "cpu")


def _shape(found: object) -> NetworkShape:
    with torch.device("meta"):
        return network_shape(found, AutoModelForCausalLM.from_config(found).base_model)


def _lengths(prompts: list[Ids]) -> str:
    low, high = min(map(len, prompts)), max(map(len, prompts))
    return f"{low}" if low == high else f"{low} to {high}"
