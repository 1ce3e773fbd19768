"""From settings to a sampler of servers, which are compared with the run's model before they get its weights."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gspo.policies.routing import ExpertLayers
from gspo.samplers.base import SamplerLost
from gspo.samplers.config import ServerConfig, urls
from gspo.samplers.dialect import Dialect
from gspo.samplers.http import Failed, Link, Refused
from gspo.samplers.servers import NO_ROUTES, Server, Servers
from gspo.samplers.sglang import SGLang
from gspo.samplers.vllm import VLLM
from gspo.samplers.weight_store import WeightStore, save_adapters, save_base

DIALECTS: dict[str, Dialect] = {"vllm": VLLM(), "sglang": SGLang()}
SHAPE = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
"""What two models must have in common for one to take the other's weights."""
PROBES, PROBE_TOKENS = 5, 6


def connect(
    config: ServerConfig,
    *,
    model_config: Any,
    tokenizer: Any,
    stop_ids: Sequence[int],
    rows: int,
    max_completion_tokens: int,
    experts: ExpertLayers | None = None,
    needs_routes: bool = False,
) -> Servers:
    """Nothing is asked of the servers before `sync_weights`."""
    if needs_routes and experts is None:
        raise ValueError(
            'policy.routing = "R3" with a server is for models with one router in each numbered layer of experts; use '
            'routing = "R2"'
        )
    is_apart = config.lora == "adapter"
    dialect = VLLM(sends_adapters=True) if is_apart else DIALECTS[config.name]
    store = WeightStore(config.shared, save_adapters, save_base) if is_apart else WeightStore(config.shared)

    def verify(server: Server) -> None:
        refuse_other_model(server, model_config, max_completion_tokens, needs_routes)
        refuse_other_tokenizer(server, tokenizer)

    return Servers(
        [Link(url, dialect.name, config.timeout) for url in urls(config)],
        dialect,
        store,
        stop_ids=stop_ids,
        rows=rows,
        deadline=config.deadline,
        restarts=config.in_flight == "restart",
        verify=verify,
        experts=experts,
        needs_routes=needs_routes,
    )


def refuse_other_model(server: Server, model_config: Any, max_completion_tokens: int, needs_routes: bool) -> None:
    """Raises `SamplerLost` for another shape (where the server's folder can be read here), too short a context, or no
    routes where they are needed.
    """
    facts = server.dialect.facts(server.link)
    if facts.problem:
        raise SamplerLost(f"{server.link}: {facts.problem}")
    if needs_routes and not facts.records_routes:
        raise SamplerLost(f"{server.link} {NO_ROUTES}")
    if 0 < facts.max_length <= max_completion_tokens:
        raise SamplerLost(
            f"{server.link} takes {facts.max_length} tokens of prompt and completion, and "
            f"sampling.max_completion_tokens is {max_completion_tokens}: start it with --max-model-len above that"
        )
    file = Path(facts.model) / "config.json"
    if not file.is_file():  # a model of the hub: its log-probs are compared by `gspo check`
        return
    theirs = json.loads(file.read_text())
    theirs = theirs.get("text_config", theirs)
    ours = model_config.get_text_config().to_dict()
    for name in SHAPE:
        if name in theirs and name in ours and theirs[name] != ours[name]:
            raise SamplerLost(
                f"{server.link} has another model ({facts.model}): its {name} is {theirs[name]!r}, the run's "
                f"{ours[name]!r}; start it with the run's model"
            )


def refuse_other_tokenizer(server: Server, tokenizer: Any) -> None:
    """Raises `SamplerLost` where a few texts have other ids there."""
    for text, ours in probes(tokenizer):
        try:
            theirs = server.dialect.encode(server.link, text)
        except (Failed, Refused) as error:
            theirs = str(error)[:80]
        if theirs != ours:
            raise SamplerLost(
                f"{server.link} has another tokenizer: {text!r} is {theirs} there and {ours} here; start it with the "
                "run's model"
            )


def probes(tokenizer: Any) -> Iterator[tuple[str, list[int]]]:
    """(text, its ids): tokens from all over the vocabulary."""
    step = max(1, len(tokenizer) // PROBES)
    special = set(tokenizer.all_special_ids)
    for start in range(0, len(tokenizer), step):
        ids = [i for i in range(start, min(start + PROBE_TOKENS, len(tokenizer))) if i not in special]
        text = tokenizer.decode(ids)
        if text:
            yield text, tokenizer(text, add_special_tokens=False)["input_ids"]
