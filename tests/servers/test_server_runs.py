"""Whole runs against an imitated server: training, saving when it is lost, resuming, `gspo check`, `gspo serve`."""

import json
import socket
import sys
from pathlib import Path

import pytest
import torch
from fake_servers import FakeVLLM, serving

from gspo.cli import serve
from gspo.cli.main import run as gspo
from gspo.models import TinyConfig, character_tokenizer, save_model, tiny_model
from gspo.policies.network import Network
from gspo.samplers import vllm_command

SHAPE = TinyConfig(hidden_size=32, layers=1, heads=2, kv_heads=2, intermediate_size=48)
WORDS = (
    *("--tiny.hidden_size", "32", "--tiny.layers", "1", "--tiny.heads", "2", "--tiny.kv_heads", "2"),
    *("--tiny.intermediate_size", "48", "--cold_start.steps", "4", "--cold_start.batch", "8"),
    *("--cold_start.check_every", "2", "--prompts_per_step", "4", "--group_size", "4", "--updates_per_step", "2"),
    *("--evaluation.prompts", "4", "--evaluation.every", "2", "--trackers", "[]"),
)


@pytest.fixture
def server(tmp_path):
    loaded = tiny_model(SHAPE, seed=5)
    save_model(loaded.model, tmp_path / "model")
    engine = FakeVLLM(Network(loaded.model.eval()), [1], folder=tmp_path / "model")
    engine.encode = lambda text: loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    with serving(engine) as started:
        yield started


def words_of(server, tmp_path, *more):
    return [
        *WORDS,
        *("--sampler.name", "vllm", "--sampler.url", server.url, "--sampler.shared", str(tmp_path / "shared")),
        *more,
    ]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_samples_what_its_policy_would(server, tmp_path):
    """At every step, and held-out questions too: versions count on, and log-probs are the policy's."""
    folder = tmp_path / "run"
    assert gspo(["train", *words_of(server, tmp_path, "--folder", str(folder), "--steps", "4")]) == 0
    lines = [line for line in metrics(folder) if "reward" in line]
    assert len(lines) == 4 and max(line["mismatch/max"] for line in lines if "mismatch/max" in line) < 1e-4
    assert server.engine.log.count("/pause") == 2 + 1 + 4  # two checks of the cold start, its end, after each step
    assert not list((tmp_path / "shared").iterdir()), "the run's folder goes with it"


def test_a_lost_server_stops_the_run_and_nothing_is_lost(server, tmp_path, capsys):
    """Step 3 is not trained: the state after step 2 is saved, though no checkpoint was due, and the run goes on."""
    folder = tmp_path / "run"
    generate = FakeVLLM.generate

    def dies(self, body):
        """In the wave of step 3, whose weights are of version 4."""
        if self.label.startswith("gspo 4 ") and body["sampling_params"]["n"] > 1:
            server.die()
        return generate(self, body)

    engine = server.engine
    engine.generate = dies.__get__(engine)
    more = ("--folder", str(folder), "--steps", "4", "--checkpoints.every", "4", "--sampler.deadline", "0.5")
    assert gspo(["train", *words_of(server, tmp_path, *more)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the vLLM server at" in line and "waited" in line
    assert f"step_000002; go on with: gspo resume {folder}" in line
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step_000000", "step_000002"]
    del engine.generate
    engine.restart()
    server.engine = engine
    assert gspo(["resume", str(folder), "--sampler.deadline", "10"]) == 0
    assert [line["step"] for line in metrics(folder) if "reward" in line] == [1, 2, 3, 4]


def test_check_tries_the_server_and_leaves_the_policy_alone(server, tmp_path, capsys):
    assert gspo(["check", *words_of(server, tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "weights arrive" in out and "log-probs against" in out


def another_distribution(engine):
    engine.logprobs_mode = "raw_logprobs"


def other_shape(engine):
    config = json.loads((engine.folder / "config.json").read_text())
    (engine.folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))


def other_tokenizer(engine):
    other = character_tokenizer("9876543210+-*= ")
    engine.encode = lambda text: other(text, add_special_tokens=False)["input_ids"]


def short_context(engine):
    engine.max_length = 5


def old_version(engine):
    engine.missing.add("/weight_info")


def keeps_its_output_layer(engine):
    load = engine.load
    first = engine.network.output.weight.detach().clone()

    def loads(folder):
        load(folder)
        if folder.endswith("/1"):
            with torch.no_grad():
                engine.network.output.weight.copy_(first)

    engine.load = loads


def by_hand_on_a_cpu(engine):
    engine.device, engine.is_ours = "cpu", False


FAULTS = (
    (another_distribution, "its log-probs are raw_logprobs"),
    (other_shape, "has another model"),
    (other_tokenizer, "has another tokenizer"),
    (short_context, "takes 5 tokens of prompt and completion"),
    (old_version, "has no /weight_info: it must be vLLM 0.32"),
    (keeps_its_output_layer, "it keeps a part of its old weights"),
    (by_hand_on_a_cpu, "on a CPU vLLM keeps its old output layer"),
)


@pytest.mark.parametrize(("fault", "line"), FAULTS)
def test_what_is_wrong_is_one_line(fault, line, server, tmp_path, capsys):
    fault(server.engine)
    assert gspo(["check", *words_of(server, tmp_path)]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and line in errors[0]


def test_a_server_by_hand_on_a_gpu_is_enough(server, tmp_path):
    server.engine.is_ours = False
    assert gspo(["check", *words_of(server, tmp_path)]) == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--policy", "diffusion"], 'sampler = "vllm" serves language models'),
        (["--sampler.name", "sglang", "--policy.routing", "R3"], 'sampler = "sglang" does not record them yet'),
        (["--policy.sampler_dtype", "bfloat16"], "a server has the dtype it started with"),
        (["--sampler.url", "localhost:8000"], "it must begin with http://"),
        (["--sampler.timeout", "0"], "it must be above 0"),
        (["--sampler.url", '["http://a", "http://a"]'], "it must name each server once"),
        (["--sampler.name", "sglang", "--sampling.top_p", "0.9"], "SGLang does not give log-probs"),
    ],
)
def test_settings_that_cannot_go_together(words, line, capsys):
    assert gspo(["plan", "--sampler.name", "vllm", *words]) == 2
    assert line in capsys.readouterr().err


def test_serve_says_what_is_missing(tmp_path, capsys, monkeypatch):
    assert gspo(["serve", "tiny", "--python", str(tmp_path / "none")]) == 2
    assert "does not run" in capsys.readouterr().err
    assert gspo(["serve", "tiny", "--python", sys.executable]) == 2
    assert "has no vLLM" in capsys.readouterr().err
    monkeypatch.setattr(vllm_command, "installed", lambda *python: {"vllm": "0.30.1", "cpu": ""})
    assert gspo(["serve", "tiny", "--python", "python"]) == 2
    assert "gspo needs 0.32 or newer" in capsys.readouterr().err
    monkeypatch.setattr(vllm_command, "installed", lambda *python: {"vllm": "", "cpu": "0.32.0"})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert gspo(["serve", "tiny", "--python", "python", "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be used" in capsys.readouterr().err


def test_serve_starts_vllm_with_what_a_run_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(vllm_command, "installed", lambda *python: {"vllm": "", "cpu": "0.32.0"})
    began = []
    monkeypatch.setattr(serve.os, "execve", lambda *words: began.append(words))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert gspo(["serve", "tiny", "--python", "python", "--port", str(port), "--", "--seed", "3"]) == 0
    ((python, words, environment),) = began
    assert python == "python" and words[3:5] == ["serve", str(tmp_path / "gspo" / "tiny")]
    assert (
        " ".join(words).endswith("--enforce-eager --no-enable-chunked-prefill --seed 3")
        and "processed_logprobs" in words
    )
    beside, entry = (Path(path) for path in environment["PYTHONPATH"].split(":")[:2])
    assert (beside / "gspo_worker.py").is_file() and (entry / "vllm-0.32.0.dist-info" / "METADATA").is_file()
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
