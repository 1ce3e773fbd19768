"""SGLang's HTTP endpoints, as of 0.5: `/generate` with ids, `/update_weights_from_disk`.

Written from its documentation and source and tested against an imitation of both; it has not been run against the real
server. Its log-probs are those after temperature and before top-k and top-p, so that sampling with either is refused,
and `SGLANG_RETURN_ORIGINAL_LOGPROB` must be unset (`gspo check` measures it). A server repeats its draws for a seed if
it was started with --enable-deterministic-inference. An update waits for completions under way, or drops them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gspo.samplers.dialect import Answer, Ask, ServerFacts, needed
from gspo.samplers.http import NO_KEY, Link, Refused

HOW = "it must be SGLang 0.5 or newer"


@dataclass(frozen=True)
class SGLang:
    name: ClassVar[str] = "SGLang"

    def answers(self, link: Link, ask: Ask) -> list[Answer]:
        """One row for each completion: rows of one request to SGLang share a seed."""
        if ask.sampling.truncates:
            raise Refused(
                "SGLang does not give log-probs under sampling.top_p or sampling.top_k: leave them out, or use "
                'sampler.name = "vllm"',
                400,
            )
        shared = {
            "temperature": ask.sampling.temperature,
            "max_new_tokens": ask.max_tokens,
            "stop_token_ids": list(ask.stop_ids),
            "ignore_eos": True,  # the renderer's end tokens, and no others
        }
        body = {
            "input_ids": [list(ask.prompt_ids)] * ask.n,
            "sampling_params": [{**shared, "sampling_seed": (ask.seed + i) & SEED_BITS} for i in range(ask.n)],
            "return_logprob": True,
            "logprob_start_len": -1,
        }
        found = link.post("/generate", body)
        if not isinstance(found, list) or len(found) != ask.n:
            raise Refused(f"{link} does not answer /generate as gspo needs it: {HOW}", 404)
        return [_answer(row["meta_info"], ask.stop_ids) for row in found]

    def label(self, link: Link) -> str:
        return self._model_info(link)["weight_version"]

    def update(self, link: Link, folder: Path, label: str, restarts: bool, base: Path | None = None) -> None:
        body = {
            "model_path": str(folder),
            "weight_version": label,
            "flush_cache": True,
            "abort_all_requests": restarts,
        }
        answer = needed(
            link, link.post("/update_weights_from_disk", body), "/update_weights_from_disk", ("success",), HOW
        )
        if not answer["success"]:
            raise Refused(f"{link} did not load the weights in {folder}: {answer.get('message')}", 400)

    def facts(self, link: Link) -> ServerFacts:
        server = needed(link, link.get("/server_info"), "/server_info", ("version",), HOW)
        return ServerFacts(
            version=server["version"],
            model=self._model_info(link)["model_path"],
            max_length=server.get("context_length") or 0,
        )

    def encode(self, link: Link, text: str) -> list[int]:
        answer = link.post("/tokenize", {"prompt": text, "add_special_tokens": False})
        return needed(link, answer, "/tokenize", ("tokens",), HOW)["tokens"]

    def _model_info(self, link: Link) -> dict[str, Any]:
        path = "/get_model_info"
        try:
            answer = link.get(path)
        except Refused as error:
            if error.status == NO_KEY:
                raise
            raise Refused(f"{link} has no {path}: {HOW}", error.status) from None
        return needed(link, answer, path, ("weight_version", "model_path"), HOW)


SEED_BITS = 2**31 - 1
"""SGLang's seeds are 32-bit."""


def _answer(meta: dict[str, Any], stop_ids: tuple[int, ...]) -> Answer:
    units = meta["output_token_logprobs"]  # (log-prob, id, text)
    ids = tuple(unit[1] for unit in units)
    ended = meta["finish_reason"]["type"]
    assert ended != "stop" or ids[-1] in stop_ids, "SGLang left out the token that ended a completion"
    return Answer(
        ids=ids,
        logprobs=tuple(unit[0] for unit in units),
        ended=ended if ended in ("stop", "length") else "abort",
        labels=(meta["weight_version"],),
    )
