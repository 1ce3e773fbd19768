"""A real vLLM server on the CPU, started by `gspo serve`: `make test-vllm`."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
import torch

from gspo.cli.main import run as gspo
from gspo.doctor import Doctor
from gspo.models import SMOLLM2, TINY
from gspo.samplers import SampleRequest, SamplerLost, vllm
from gspo.samplers.vllm import RELOAD, VLLM
from gspo.sampling import Sampling
from gspo.settings import load_config
from gspo.training.batch import assemble
from gspo.training.parts import build
from gspo.types import Sample

pytestmark = pytest.mark.vllm
PYTHON = str(Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python")
STARTS = 400.0
"""Seconds in which a server must be up, on two busy cores."""
SAMPLINGS = (
    Sampling(max_completion_tokens=16),
    Sampling(temperature=0.6, max_completion_tokens=16),
    Sampling(top_k=4, max_completion_tokens=16),
    Sampling(top_p=0.6, temperature=1.3, max_completion_tokens=16),
    Sampling(temperature=0.0, max_completion_tokens=16),
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Started:
    """`gspo serve`, in a process group of its own."""

    def __init__(
        self, model: str, log: Path, port: int = 0, words: tuple[str, ...] = (), flags: tuple[str, ...] = ()
    ) -> None:
        self.model, self.log, self.port = model, log, port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        line = ["serve", model, "--port", str(self.port), "--python", PYTHON, "--max-model-len", "256", *words]
        line += ["--", *flags] if flags else []
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gspo", *line],
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            )

    def wait(self) -> "Started":
        end = time.monotonic() + STARTS
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.5)
        raise AssertionError(f"no server within {STARTS:g} s: {self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def words(self, *more: str) -> list[str]:
        return ["--model", self.model, "--sampler.name", "vllm", "--sampler.url", self.url, *more]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    server = Started(TINY, tmp_path_factory.mktemp("tiny") / "log")
    yield server.wait()
    server.kill()


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    server = Started(SMOLLM2, tmp_path_factory.mktemp("smollm2") / "log")
    yield server.wait()
    server.kill()


def parts_of(server: Started, *more: str):
    return build(load_config(None, server.words(*more)), report=lambda text: None)


def wave(sampling: Sampling, vocabulary: int, length: int = 6, prompts: int = 8, step: int = 0):
    make = torch.Generator().manual_seed(7)
    return [
        SampleRequest(
            prompt_ids=tuple(torch.randint(2, vocabulary, (length + p,), generator=make).tolist()),
            n=4,
            seed=1,
            step=step,
            prompt_id=p,
            sampling=sampling,
        )
        for p in range(prompts)
    ]


def gaps(parts, requests, groups) -> torch.Tensor:
    """Differences of the log-probs of all tokens, by server and by policy."""
    rows = [
        Sample(
            group_id=p,
            rollout_id=0,
            index=i,
            prompt_ids=request.prompt_ids,
            completion_ids=c.ids,
            sampler_logprobs=c.logprobs,
            advantage=0.0,
            reward=0.0,
            is_trained=True,
        )
        for p, (request, group) in enumerate(zip(requests, groups, strict=True))
        for i, c in enumerate(group)
    ]
    step = assemble(rows, parts.policy.network.device)
    scorer = replace(parts.policy.scorer, scoring=requests[0].sampling)
    return (scorer.logprobs(step).logprobs - step.sampler_logprobs)[step.mask].abs()


def move(parts, size: float = 0.3) -> None:
    """All weights, the output layer that the embedding shares among them."""
    make = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, p in parts.policy.network.named_trainable():
            p.add_(size * p.float().abs().mean() * torch.randn(p.shape, generator=make).to(p.dtype))


def test_log_probs_are_the_policys(tiny):
    """In float32, under every kind of sampling, at the weights it was started with and at others."""
    parts = parts_of(tiny)
    for version in (0, 1):
        parts.sampler.sync_weights(parts.policy, version)
        for sampling in SAMPLINGS:
            requests = wave(sampling, parts.policy.network.vocabulary)
            groups = parts.sampler.sample(requests)
            assert gaps(parts, requests, groups).max() < 2e-5
            for group in groups:
                assert len(group) == 4 and {c.policy_version for c in group} == {version}
                for c in group:
                    assert (c.finish_reason == "stop") == (c.ids[-1] == 1) and 1 not in c.ids[:-1]
                    assert len(c.ids) == 16 or c.finish_reason == "stop"
        move(parts)


def test_adapters_are_sent_alone(tmp_path):
    """On the server they stand on the run's own base, which is not what it was started with; kill -9 in between."""
    server = Started(TINY, tmp_path / "log", words=("--lora-rank", "4")).wait()
    parts = parts_of(server, "--lora.rank", "4", "--sampler.lora", "adapter", "--seed", "3")
    requests = wave(SAMPLINGS[0], parts.policy.network.vocabulary, length=200, prompts=3)
    base = {name: p.clone() for name, p in parts.policy.network.model.named_parameters() if not p.requires_grad}
    try:
        for version in range(3):
            move(parts)
            if version == 2:
                server.kill()
                server = Started(TINY, tmp_path / "log", server.port, words=("--lora-rank", "4"))
            parts.sampler.sync_weights(parts.policy, version)
            for _ in range(2):  # the second time from the cache
                groups = parts.sampler.sample(requests)
                assert gaps(parts, requests, groups).max() < 5e-5
                assert {c.policy_version for group in groups for c in group} == {version}
        newest = max(parts.sampler.store.folder.glob("[0-9]*"), key=lambda folder: int(folder.name))
        assert not (newest / "model.safetensors").exists() and (newest / "adapter_model.safetensors").exists()
        assert all(torch.equal(dict(parts.policy.network.model.named_parameters())[n], p) for n, p in base.items())
    finally:
        server.kill()


def test_same_counters_same_tokens(tiny):
    """A draw is a function of its counters; rounding may differ with what it shares a batch with."""
    parts = parts_of(tiny)
    parts.sampler.sync_weights(parts.policy, 0)
    requests = wave(SAMPLINGS[0], parts.policy.network.vocabulary)
    first, again = parts.sampler.sample(requests), parts.sampler.sample(requests[::-1])[::-1]
    ids = [[c.ids for c in group] for group in first]
    assert ids == [[c.ids for c in group] for group in again]
    assert len({i for group in ids for i in group}) > 24
    other = parts.sampler.sample(wave(SAMPLINGS[0], parts.policy.network.vocabulary, step=1))
    assert [[c.ids for c in group] for group in other] != ids


def test_cached_prefixes_are_forgotten(tiny):
    """Prompts of more than a block of 128 tokens, the same before an update and after it."""
    parts = parts_of(tiny)
    requests = wave(SAMPLINGS[0], parts.policy.network.vocabulary, length=200, prompts=3)
    for version in range(3):
        parts.sampler.sync_weights(parts.policy, version)
        for _ in range(2):  # the second time from the cache
            assert gaps(parts, requests, parts.sampler.sample(requests)).max() < 5e-5
        move(parts)


@pytest.mark.parametrize("in_flight", ["finish", "restart"])
def test_weights_change_while_it_samples(tiny, in_flight):
    """From another thread; every completion is scored by the weights of the version that it says."""
    parts = parts_of(tiny, "--sampler.in_flight", in_flight, "--sampler_rows", "16")
    parts.sampler.sync_weights(parts.policy, 0)
    requests = wave(Sampling(temperature=1.5, max_completion_tokens=48), parts.policy.network.vocabulary, prompts=24)
    kept = {0: {k: v.clone() for k, v in parts.policy.network.model.state_dict().items()}}
    stop = threading.Event()

    def update() -> None:
        version = 0
        while not stop.wait(0.5):
            version += 1
            move(parts, 0.1)
            kept[version] = {k: v.clone() for k, v in parts.policy.network.model.state_dict().items()}
            parts.sampler.sync_weights(parts.policy, version)

    thread = threading.Thread(target=update)
    thread.start()
    groups = parts.sampler.sample(requests)
    stop.set()
    thread.join()
    found = {c.policy_version for group in groups for c in group}
    assert len(found) > 1
    for version in found:
        parts.policy.network.model.load_state_dict(kept[version])
        said = [[c for c in group if c.policy_version == version] for group in groups]
        assert gaps(parts, requests, said).max() < 2e-5


def test_a_run_through_the_server_and_its_resume(tiny, tmp_path):
    folder = tmp_path / "run"
    words = tiny.words("--folder", str(folder), "--prompts_per_step", "16", "--evaluation.prompts", "20")
    assert gspo(["train", *words, "--steps", "3", "--cold_start.steps", "30"]) == 0
    assert gspo(["resume", str(folder), "--steps", "5"]) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "reward" in line] == [1, 2, 3, 4, 5]
    assert max(line["mismatch/max"] for line in lines if "mismatch/max" in line) < 1e-4


def test_mistakes_are_one_line(tiny, capsys, tmp_path):
    """Another shape, another tokenizer, a port in use, two runs, a context that is too short."""
    parts = parts_of(tiny)
    parts.sampler.sync_weights(parts.policy, 0)
    other = parts_of(tiny)
    with pytest.raises(SamplerLost, match="in use by another run"):
        other.sampler.sync_weights(other.policy, 0)
    del parts, other
    for wrong, line in (
        (["--tiny.layers", "2"], "has another model"),
        (["--tiny.alphabet", "9876543210+-*= "], "has another tokenizer"),
        (["--sampling.max_completion_tokens", "256"], "takes 256 tokens of prompt and completion"),
        (["--sampler.url", "http://127.0.0.1:9", "--sampler.deadline", "1"], "Connection refused"),
    ):
        assert gspo(["check", *tiny.words(), *wrong]) == 2
        assert line in capsys.readouterr().err
    assert gspo(["serve", TINY, "--port", str(tiny.port), "--python", PYTHON]) == 2
    assert "cannot be used" in capsys.readouterr().err
    assert gspo(["check", *tiny.words()]) == 0
    assert "weights arrive" in capsys.readouterr().out


def test_kill_and_start_again(tmp_path):
    """kill -9 in the middle of a wave: what is started again gets the current weights before its next token."""
    server = Started(TINY, tmp_path / "log").wait()
    parts = parts_of(server, "--sampler_rows", "4")
    move(parts)
    parts.sampler.sync_weights(parts.policy, 7)
    requests = wave(Sampling(temperature=1.5, max_completion_tokens=40), parts.policy.network.vocabulary)
    came = parts.sampler.sample_each(requests)
    found = dict([next(came)])
    server.kill()
    again = Started(TINY, tmp_path / "log", server.port)
    try:
        found |= dict(came)
        groups = [found[i] for i in range(len(requests))]
        assert {c.policy_version for group in groups for c in group} == {7}
        assert gaps(parts, requests, groups).max() < 2e-5
    finally:
        again.kill()


class KeepsOldWeights(VLLM):
    def update(self, link, folder, label, restarts, base=None):
        link.post("/update_weight_version", {"new_version": label})


class KeepsOldPrefixes(VLLM):
    def update(self, link, folder, label, restarts, base=None):
        link.post("/collective_rpc", {"method": RELOAD, "kwargs": {"weights_path": str(folder)}})
        link.post("/update_weight_version", {"new_version": label})


def causes(server: Started, dialect: VLLM | None = None, *more: str) -> list[str]:
    parts = parts_of(server, *more)
    if dialect is not None:
        parts.sampler.sync_weights(parts.policy, 0)  # as a run began
        parts.sampler.dialect = dialect
        for each in parts.sampler.servers:
            each.dialect = dialect
    found = Doctor(parts, prompts=4, version=1).examine()[1]
    parts.sampler.close()
    print([(each.cause, each.verdict, each.measured) for each in found])
    return [each.cause for each in found if each.verdict == "cause"]


@dataclass(frozen=True)
class ReadsAgain(VLLM):
    """Takes texts, and encodes them: beside the log-probs of the ids that were drawn."""

    tokenizer: object = None

    def answers(self, link, ask):
        return [self._read(answer, ask.stop_ids) for answer in super().answers(link, ask)]

    def _read(self, answer, stop_ids):
        end = answer.ids[-1:] if answer.ids[-1] in stop_ids else ()
        text = self.tokenizer.decode(answer.ids[: len(answer.ids) - len(end)])
        ids = (*self.tokenizer(text, add_special_tokens=False)["input_ids"], *end)
        return replace(answer, ids=ids, logprobs=(*answer.logprobs, *(0.0,) * len(ids))[: len(ids)])


LONG_PROMPTS = ("--data.task", "reasoning_gym/chain_sum", "--data.options.shots", "4")
WARM = ("--sampling.temperature", "1.2", "--sampling.max_completion_tokens", "24", "--group_size", "4")


def test_the_doctor_has_nothing_to_say_of_a_healthy_server(tiny):
    assert causes(tiny) == [] == causes(tiny, None, "--sampling.top_p", "0.7", "--sampling.temperature", "1.3")


def test_the_doctor_names_weights_that_do_not_arrive(tiny):
    assert causes(tiny, KeepsOldWeights()) == ["stale weights"]


def test_the_doctor_names_another_precision(smollm2):
    """The server is in bfloat16, and the policy is not."""
    assert causes(smollm2, None, "--dtype", "float32", *LONG_PROMPTS, *WARM) == ["precision"]


def test_the_doctor_names_prefixes_of_old_weights(smollm2):
    """Prompts of more than a block of 128 tokens."""
    assert causes(smollm2, KeepsOldPrefixes(), *LONG_PROMPTS, *WARM) == ["stale prefix cache"]


def test_the_doctor_names_tokens_that_were_read_again(smollm2):
    tokenizer = parts_of(smollm2).loaded.tokenizer
    assert "tokens" in causes(smollm2, ReadsAgain(tokenizer=tokenizer), *WARM)
    assert "tokens" not in causes(smollm2, None, *WARM)


def test_log_probs_of_another_distribution(tmp_path, capsys, monkeypatch):
    """A server without the flag is refused; if it were not, the doctor would name it."""
    server = Started(TINY, tmp_path / "log", flags=("--logprobs-mode", "raw_logprobs")).wait()
    narrow = ("--sampling.top_p", "0.6", "--sampling.temperature", "1.3")
    try:
        assert gspo(["check", *server.words(*narrow)]) == 2
        assert "its log-probs are raw_logprobs, not of what it draws from" in capsys.readouterr().err
        monkeypatch.setattr(vllm, "_problem", lambda config: "")
        assert causes(server, None, *narrow) == ["sampling support"]
    finally:
        server.kill()


def test_check_has_nothing_to_say_of_a_healthy_server_of_a_deep_model(smollm2, capsys):
    """In bfloat16: the move that shows whether weights arrive is not one that makes the model disagree with itself."""
    assert gspo(["check", "smollm2-chain-sum", *smollm2.words("--prompts_per_step", "4", "--group_size", "4")]) == 0
    print(capsys.readouterr().out)


def test_smollm2_in_bfloat16(smollm2, tmp_path):
    """Two kinds of bf16 arithmetic: close, not equal; also after an update. Then two steps of the recipe."""
    parts = parts_of(smollm2)
    for version in (0, 1):
        parts.sampler.sync_weights(parts.policy, version)
        requests = wave(Sampling(max_completion_tokens=32), 49152, prompts=4)
        found = gaps(parts, requests, parts.sampler.sample(requests))
        print(f"version {version}: mean {found.mean():.3g}, max {found.max():.3g}")
        assert found.mean() < 0.1
        move(parts, 0.1)
    del parts
    folder = tmp_path / "run"
    words = ["--folder", str(folder), "--steps", "2", "--prompts_per_step", "4", "--group_size", "4"]
    words += ["--updates_per_step", "2", "--evaluation.prompts", "4", "--sampling.max_completion_tokens", "48"]
    assert gspo(["train", "smollm2-chain-sum", *smollm2.words(*words)]) == 0
    assert json.loads((folder / "summary.json").read_text())["steps"] == 2
