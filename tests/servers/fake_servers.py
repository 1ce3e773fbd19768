"""Servers that speak vLLM's and SGLang's HTTP over a small real network, and fail when told to."""

import base64
import copy
import io
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import numpy as np
from peft import PeftModel
from safetensors.torch import load_file

from gspo.policies.network import Network
from gspo.samplers import InProcess, SampleRequest
from gspo.sampling import Sampling

DEFAULT = "default"


class NoSuchModel(Exception):
    """Answered by 404."""


class FakeEngine:
    """What both dialects do: generate, take weights, forget; `delay` seconds for a request, one at a time."""

    def __init__(self, network: Network, stop_ids, delay: float = 0.0, folder: Path | None = None) -> None:
        self.network, self.delay, self.folder = network, delay, folder
        self.start = {name: t.clone() for name, t in network.model.state_dict().items()}
        self.sampler = InProcess(network, stop_ids, 0)
        self.busy = threading.Lock()
        self.open = threading.Event()
        self.open.set()
        self.under_way = 0
        self.drops = 0
        """Counts weight updates that dropped what was under way."""
        self.log: list[str] = []
        self.missing: set[str] = set()
        """Paths that it does not have."""
        self.hangs = threading.Event()
        self.max_length = 256
        self.logprobs_mode, self.device = "processed_logprobs", "cuda"
        self.is_ours = True
        """Whether `gspo serve` started it."""
        self.encode = lambda text: [len(text)]
        self.takes_adapters = False
        self.records_routes = False
        """Whether it was started with --enable-return-routed-experts."""
        self.key = ""
        """What it wants of its clients."""
        self.loads: list[str] = []
        """What was loaded: "model", "adapter"."""
        self.restart()

    def restart(self) -> None:
        """As after kill -9 and a new start: the weights it was started with."""
        self.label, self.base, self.has_adapter = DEFAULT, self.start, False
        self.network.model.load_state_dict(self.start)

    def load(self, folder: str) -> None:
        assert self.is_paused, "weights change while it generates"
        self.loads.append("model")
        model = self.network.model
        found = model.load_state_dict(load_file(Path(folder) / "model.safetensors"), strict=False)
        if found.unexpected_keys:  # experts lie one by one in a checkpoint, and stacked in the model
            read = type(model).from_pretrained(folder, dtype=model.dtype)
            model.load_state_dict(read.state_dict())
        self.base = {name: t.clone() for name, t in self.network.model.state_dict().items()}

    def load_adapter(self, folder: str) -> None:
        """Added to what was loaded as a whole."""
        assert self.is_paused, "weights change while it generates"
        self.loads.append("adapter")
        self.has_adapter = True
        model = copy.deepcopy(self.network.model)
        model.load_state_dict(self.base)
        merged = PeftModel.from_pretrained(model, folder).merge_and_unload()
        self.network.model.load_state_dict(merged.state_dict())

    @property
    def is_paused(self) -> bool:
        return not self.open.is_set()

    def drain(self) -> None:
        while self.under_way:
            time.sleep(0.005)

    def completions(self, prompt_ids, sampling: Sampling, seeds):
        """[(ids, logprobs, ended, labels, routes)]"""
        self.open.wait()
        drops = self.drops
        self.under_way += 1
        try:
            deadline = time.monotonic() + self.delay
            while time.monotonic() < deadline:
                if self.drops > drops:
                    return [((), (), "abort", (self.label,), None) for _ in seeds]
                time.sleep(0.005)
            with self.busy:
                requests = [
                    SampleRequest(
                        prompt_ids=tuple(prompt_ids), n=1, seed=s % 2**62, step=0, prompt_id=0, sampling=sampling
                    )
                    for s in seeds
                ]
                found = [self.sampler.sample([request])[0][0] for request in requests]
                return [(c.ids, c.logprobs, c.finish_reason, (self.label,), c.replay) for c in found]
        finally:
            self.under_way -= 1


def sampling_of(settings, most: str) -> Sampling:
    return Sampling(
        temperature=settings["temperature"],
        top_p=settings.get("top_p", 1.0),
        top_k=settings.get("top_k", 0),
        max_completion_tokens=settings[most],
    )


def over_all_layers(routes, config) -> np.ndarray:
    """Routes as vLLM's capturer holds them: a column for each hidden layer, zeros where vLLM's Qwen3-MoE is dense."""
    sparse = [
        layer
        for layer in range(config.num_hidden_layers)
        if layer not in config.mlp_only_layers and (layer + 1) % config.decoder_sparse_step == 0
    ]
    tokens, _, k = routes.shape
    dtype = np.uint8 if config.num_experts <= 256 else np.uint16
    found = np.zeros((tokens, config.num_hidden_layers, k), dtype)
    found[:, sparse] = routes.experts
    return found


def packed(array: np.ndarray) -> str:
    """As vLLM's `numpy2base64`."""
    with io.BytesIO() as file:
        np.save(file, array, allow_pickle=False)
        return base64.b64encode(file.getbuffer()).decode("ascii")


def unpacked(text: str) -> np.ndarray:
    return np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)


class FakeVLLM(FakeEngine):
    GUARDED = ("/v1", "/v2", "/inference", "/cohere")

    def turns_away(self, path, said) -> bool:
        return bool(self.key) and path.startswith(self.GUARDED) and said != f"Bearer {self.key}"

    def routed(self, routes) -> np.ndarray:
        return over_all_layers(routes, self.network.config)

    def answer(self, path, query, body):
        match path:
            case "/health" | "/version" | "/server_info" | "/v1/models":
                return self.facts(path)
            case "/weight_info":
                return {"weight_version": self.label}
            case "/tokenize":
                return {"tokens": self.encode(body["prompt"])}
            case "/pause":
                self.open.clear()
                self.drops += query["mode"] == ["abort"]
                self.drain()
                return {"status": "paused"}
            case "/collective_rpc":
                if body["method"] != "reload_weights" and not self.is_ours:
                    raise AttributeError(f"'CPUWorker' object has no attribute {body['method']!r}")
                self.load(body["kwargs"]["weights_path"])
                return {"results": [None]}
            case "/v1/load_lora_adapter" if self.takes_adapters:
                self.load_adapter(body["lora_path"])
                return {}
            case "/reset_prefix_cache":
                return {"success": not self.under_way}
            case "/update_weight_version":
                self.label = body["new_version"]
                return {"success": True, "new_version": self.label}
            case "/resume":
                self.open.set()
                return {"status": "resumed"}
            case "/inference/v1/generate":
                return self.generate(body)
        return None

    def facts(self, path):
        if path == "/health":
            return {}
        if path == "/v1/models":
            return {"data": []}
        if path == "/version":
            return {"version": "0.32.0"}
        model = {
            "model": str(self.folder),
            "max_model_len": self.max_length,
            "logprobs_mode": self.logprobs_mode,
        }
        return {
            "vllm_config": {
                "model_config": model,
                "aux_output_config": {"enable_return_routed_experts": self.records_routes, "max_bytes": None},
                "device_config": {"device": self.device},
                "parallel_config": {"worker_extension_cls": "gspo_worker.GspoWorker" if self.is_ours else ""},
            }
        }

    def generate(self, body):
        if "model" in body and not self.has_adapter:
            raise NoSuchModel(f"The model `{body['model']}` does not exist.")
        settings = body["sampling_params"]
        assert settings["ignore_eos"] and settings["logprobs"] == 0
        assert settings["n"] == 1 or settings["temperature"] > 0, "n must be 1 when using greedy sampling"
        seeds = [settings["seed"] + i for i in range(settings["n"])]
        choices = [
            {
                "index": index,
                "token_ids": list(ids),
                "finish_reason": ended,
                "logprobs": {"content": [{"token_id": i, "logprob": x} for i, x in zip(ids, logprobs, strict=True)]},
                "weight_versions": [{"version": label, "start": 0, "end": len(ids)} for label in labels],
                "routed_experts": packed(self.routed(routes)) if self.records_routes and routes is not None else None,
            }
            for index, (ids, logprobs, ended, labels, routes) in enumerate(
                self.completions(body["token_ids"], sampling_of(settings, "max_tokens"), seeds)
            )
        ]
        return {"choices": choices[::-1]}


class FakeSGLang(FakeEngine):
    def turns_away(self, path, said) -> bool:
        return bool(self.key) and not path.startswith("/health") and said != f"Bearer {self.key}"

    def answer(self, path, query, body):
        match path:
            case "/server_info":
                return {"version": "0.5.23", "context_length": self.max_length}
            case "/get_model_info":
                return {"model_path": str(self.folder), "weight_version": self.label}
            case "/tokenize":
                return {"tokens": self.encode(body["prompt"])}
            case "/update_weights_from_disk":
                self.open.clear()
                self.drops += body["abort_all_requests"]
                self.drain()
                assert body["flush_cache"]
                self.load(body["model_path"])
                self.label = body["weight_version"]
                self.open.set()
                return {"success": True, "message": "Succeeded to update model weights."}
            case "/generate":
                return self.generate(body)
        return None

    def generate(self, body):
        assert body["return_logprob"] and "top_p" not in body["sampling_params"][0]
        rows = []
        for ids, settings in zip(body["input_ids"], body["sampling_params"], strict=True):
            assert 0 <= settings["sampling_seed"] < 2**31
            sampling = sampling_of(settings, "max_new_tokens")
            (one,) = self.completions(ids, sampling, [settings["sampling_seed"]])
            reason = {"type": one[2], "matched": one[0][-1] if one[0] else None}
            units = [[x, i, None] for i, x in zip(one[0], one[1], strict=True)]
            meta = {"finish_reason": reason, "weight_version": one[3][0], "output_token_logprobs": units}
            rows.append({"text": "", "output_ids": list(one[0]), "meta_info": meta})
        return rows


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply()

    def do_POST(self):
        self.reply()

    def reply(self):
        engine = self.server.engine
        url = urlparse(self.path)
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        if engine is None:
            self.close_connection = True
            return
        engine.log.append(url.path)
        while engine.hangs.is_set():
            time.sleep(0.01)
        status, content = 404, {"detail": "Not Found"}
        if engine.turns_away(url.path, self.headers.get("authorization")):
            status, content = 401, {"error": "Unauthorized"}
        elif url.path not in engine.missing:
            try:
                found = engine.answer(url.path, parse_qs(url.query), body)
                status, content = (404, content) if found is None else (200, found)
            except NoSuchModel as error:
                status, content = 404, {"error": str(error)}
            except Exception as error:  # a server answers for its faults
                status, content = 500, {"error": repr(error)}
        if self.server.engine is not engine:  # it died meanwhile
            self.close_connection = True
            return
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments):
        pass


class FakeServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, engine: FakeEngine, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.engine: FakeEngine | None = engine
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def die(self) -> FakeEngine:
        """Requests under way and new ones find the connection closed."""
        engine, self.engine = self.engine, None
        return engine

    def handle_error(self, request, address):
        """A client that has gone away is no news."""


@contextmanager
def serving(engine: FakeEngine):
    server = FakeServer(engine)
    try:
        yield server
    finally:
        engine.hangs.clear()
        server.shutdown()
        server.server_close()
