"""vLLM's HTTP endpoints, as of 0.32: token ids in and out, weights from a folder.

Log-probs come from the distribution that was drawn from (`--logprobs-mode processed_logprobs`: after temperature, top-k
and top-p). Every choice says which weights made it (`weight_versions`). Cached prefixes are forgotten while generation
is paused, after the new weights are in. A server that was started with --enable-return-routed-experts says to which
experts each token went.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gspo.samplers.dialect import Answer, Ask, ServerFacts, needed
from gspo.samplers.http import Failed, Link, Refused, Unanswered

HOW = "it must be vLLM 0.32 or newer, started by `gspo serve MODEL` (or with its flags, docs/scale.md)"
PROCESSED = "processed_logprobs"
RELOAD = "gspo_reload"
"""See beside_vllm/gspo_worker.py."""


ADAPTER = "gspo"
"""The name of the one adapter."""


@dataclass(frozen=True)
class VLLM:
    name: ClassVar[str] = "vLLM"
    sends_adapters: bool = False
    """Weights come as adapters, which the server adds to each layer as the policy does; else as a whole model."""

    def answers(self, link: Link, ask: Ask) -> list[Answer]:
        sampling = ask.sampling
        different = ask.n if sampling.temperature else 1  # it refuses to repeat a greedy completion
        settings = {
            "n": different,
            "seed": ask.seed,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": ask.max_tokens,
            "stop_token_ids": list(ask.stop_ids),
            "ignore_eos": True,  # the renderer's end tokens, and no others
            "detokenize": False,
            "logprobs": 0,  # of the drawn token alone
        }
        path = "/inference/v1/generate"
        body: dict[str, Any] = {"token_ids": list(ask.prompt_ids), "sampling_params": settings}
        if self.sends_adapters:
            body["model"] = ADAPTER
        table = needed(link, self._known(link.post, path, body), path, ("choices",), HOW)
        found = [_answer(choice) for choice in sorted(table["choices"], key=lambda choice: choice["index"])]
        return found * (ask.n // different)

    def label(self, link: Link) -> str:
        return needed(link, self._known(link.get, "/weight_info"), "/weight_info", ("weight_version",), HOW)[
            "weight_version"
        ]

    def update(self, link: Link, folder: Path, label: str, restarts: bool, base: Path | None = None) -> None:
        link.post("/pause", mode="abort" if restarts else "wait")
        if self.sends_adapters:
            if base is not None:
                _reload(link, base)
            _load_adapter(link, folder)
        else:
            _reload(link, folder)
        if not link.post("/reset_prefix_cache")["success"]:
            raise Refused(f"{link} did not forget its cached prefixes, which are of other weights", 200)
        link.post("/update_weight_version", {"new_version": label})
        link.post("/resume")

    def facts(self, link: Link) -> ServerFacts:
        version = needed(link, self._known(link.get, "/version"), "/version", ("version",), HOW)["version"]
        answer = self._known(link.get, "/server_info", config_format="json")
        config = needed(link, answer, "/server_info", ("vllm_config",), HOW)["vllm_config"]
        model = needed(link, config, "/server_info", ("model_config",), HOW)["model_config"]
        self._known(link.get, "/v1/models")  # guarded by a key, as completions are and the endpoints above are not
        return ServerFacts(
            version=version,
            model=model["model"],
            max_length=model["max_model_len"] or 0,
            records_routes=config["aux_output_config"]["enable_return_routed_experts"],
            problem=_problem(config),
        )

    def encode(self, link: Link, text: str) -> list[int]:
        answer = self._known(link.post, "/tokenize", {"prompt": text, "add_special_tokens": False})
        return needed(link, answer, "/tokenize", ("tokens",), HOW)["tokens"]

    def _known(self, ask: Any, path: str, *body: Any, **params: Any) -> Any:
        """Where a server lacks an endpoint, what to do about it."""
        try:
            return ask(path, *body, **params)
        except Refused as error:
            if error.status not in (403, 404, 405):
                raise
            if self.sends_adapters and f"`{ADAPTER}` does not exist" in str(error):
                raise Unanswered("it has no adapter of this run: was it started again?") from None
            raise Refused(f"{ask.__self__} has no {path}: {HOW}", error.status) from None


def _load_adapter(link: Link, folder: Path) -> None:
    """In the place of the one before it."""
    path = "/v1/load_lora_adapter"
    try:
        link.post(path, {"lora_name": ADAPTER, "lora_path": str(folder), "load_inplace": True})
    except Refused as error:
        if error.status not in (403, 404, 405):
            raise
        raise Refused(
            f'{link} has no {path}, and sampler.lora = "adapter" sends adapters alone: start it with gspo serve MODEL '
            '--lora-rank R, or use sampler.lora = "merged"',
            error.status,
        ) from None


def _reload(link: Link, folder: Path) -> None:
    """By what `gspo serve` puts beside the workers; by vLLM's own method, which is enough on a GPU, where it is not."""
    arguments = {"weights_path": str(folder)}
    try:
        link.post("/collective_rpc", {"method": RELOAD, "kwargs": arguments})
    except Failed as error:
        if RELOAD not in str(error):
            raise
        link.post("/collective_rpc", {"method": "reload_weights", "kwargs": arguments})


def _problem(config: dict[str, Any]) -> str:
    mode = config["model_config"]["logprobs_mode"]
    if mode != PROCESSED:
        return f"its log-probs are {mode}, not of what it draws from: start it with --logprobs-mode {PROCESSED}"
    is_on_cpu = config["device_config"]["device"] == "cpu"
    if is_on_cpu and not str(config["parallel_config"]["worker_extension_cls"]).startswith("gspo_worker."):
        return "on a CPU vLLM keeps its old output layer when it loads new weights: start it by `gspo serve MODEL`"
    return ""


def _answer(choice: dict[str, Any]) -> Answer:
    logprobs = (choice["logprobs"] or {}).get("content") or []
    spans = choice.get("weight_versions") or []
    ended = choice["finish_reason"]
    return Answer(
        ids=tuple(choice["token_ids"]),
        logprobs=tuple(unit["logprob"] for unit in logprobs),
        ended=ended if ended in ("stop", "length") else "abort",
        labels=tuple(span["version"] for span in spans),
        routes=_routes(choice.get("routed_experts")),
    )


def _routes(text: str | None) -> np.ndarray | None:
    """From a `.npy` file in base64."""
    return None if text is None else np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)
