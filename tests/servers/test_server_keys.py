"""Servers that want a key: it is sent, missed and refused in one line, and written nowhere."""

from pathlib import Path

import httpx
import pytest
from fake_servers import serving
from test_server_runs import server, words_of  # noqa: F401
from test_servers import DIALECTS, engine, policy, requests, sampler_of  # noqa: F401

from gspo.cli import serve
from gspo.cli.main import run as gspo
from gspo.placement.policies import Job
from gspo.placement.servers import Charge
from gspo.samplers import SamplerLost, vllm_command
from gspo.samplers.http import Link, _asks_for_key
from gspo.samplers.key import VARIABLE, hold_key, server_key
from gspo.samplers.vllm_command import Asked

KEY = "sk-Kp3-not-to-be-seen"


@pytest.fixture(params=DIALECTS)
def guarded(request):
    dialect, kind = DIALECTS[request.param]
    made = engine(kind)
    made.key = KEY
    with serving(made) as started:
        yield dialect, started


def test_the_key_of_the_environment_is_sent(guarded, policy, tmp_path, monkeypatch):  # noqa: F811
    dialect, started = guarded
    monkeypatch.setenv(VARIABLE, KEY)
    sampler = sampler_of([started.url], tmp_path, dialect)
    sampler.sync_weights(policy, 0)
    assert len(sampler.sample(requests())) == 4
    assert dialect.facts(sampler.servers[0].link).version


@pytest.mark.parametrize(
    ("key", "line"), [("", "wants a key: set GSPO_SERVER_KEY"), ("sk-no", "does not take the key in GSPO_SERVER_KEY")]
)
def test_a_key_that_is_missing_or_wrong_is_one_line(key, line, guarded, policy, tmp_path, monkeypatch):  # noqa: F811
    """And not asked again. vLLM guards completions, and not where weights go; SGLang all that is used."""
    dialect, started = guarded
    monkeypatch.setenv(VARIABLE, key)
    sampler = sampler_of([started.url], tmp_path, dialect, rows=1)
    with pytest.raises(SamplerLost) as error:
        sampler.sync_weights(policy, 0)
        sampler.sample(requests(prompts=1))
    assert str(error.value) == f"the {dialect.name} server at {started.url} {line}"
    asked = started.engine.log.count("/inference/v1/generate")
    assert asked == (1 if dialect.name == "vLLM" else 0) and len(started.engine.log) < 9


def test_a_run_without_the_key_stops_before_the_server_gets_weights(server, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.delenv(VARIABLE, raising=False)
    server.engine.key = KEY
    assert gspo(["check", *words_of(server, tmp_path)]) == 2
    assert f"the vLLM server at {server.url} wants a key: set {VARIABLE}" in capsys.readouterr().err
    assert "/pause" not in server.engine.log


def test_a_run_writes_the_key_nowhere(server, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setenv(VARIABLE, KEY)
    server.engine.key = KEY
    folder = tmp_path / "run"
    assert gspo(["train", *words_of(server, tmp_path, "--folder", str(folder), "--steps", "1")]) == 0
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files and not [path for path in files if KEY.encode() in path.read_bytes()]
    said = capsys.readouterr()
    assert KEY not in said.out + said.err


def test_an_answer_that_repeats_the_key_is_not_repeated(policy, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv(VARIABLE, KEY)
    with serving(engine()) as started:
        sampler = sampler_of([started.url], tmp_path)

        def echoes(folder):
            raise ValueError(f"with the headers Bearer {KEY}")

        started.engine.load = echoes
        with pytest.raises(SamplerLost, match=r"with the headers Bearer \(the key\)") as error:
            sampler.sync_weights(policy, 0)
    assert KEY not in str(error.value) and KEY not in repr(sampler.servers[0].link)


@pytest.mark.parametrize("key", [f"{KEY}\n", "two words", "schlüssel", "tab\t"])
def test_a_key_that_no_header_can_carry(key, monkeypatch):
    monkeypatch.setenv(VARIABLE, key)
    with pytest.raises(ValueError, match="no header can carry") as error:
        Link("http://127.0.0.1:9", "vLLM", 1.0)
    assert key.strip() not in str(error.value)


def test_what_asks_for_a_key():
    """A proxy's 403 names its scheme; vLLM's own says that something is switched off."""
    asks = [(401, {}), (403, {"WWW-Authenticate": "Bearer"})]
    others = [(200, {}), (403, {}), (404, {"WWW-Authenticate": "Bearer"})]
    assert all(_asks_for_key(httpx.Response(status, headers=headers)) for status, headers in asks)
    assert not any(_asks_for_key(httpx.Response(status, headers=headers)) for status, headers in others)


def test_serve_gives_vllm_the_key_in_its_environment(capsys, monkeypatch):
    monkeypatch.setattr(vllm_command, "installed", lambda *python: {"vllm": "0.32.0", "cpu": ""})
    monkeypatch.setattr(vllm_command, "refuse_taken_port", lambda host, port: None)
    began = []
    monkeypatch.setattr(serve.os, "execve", lambda *words: began.append(words))
    monkeypatch.setenv(VARIABLE, KEY)
    assert gspo(["serve", "org/model", "--python", "python", "--routes"]) == 0
    ((_, words, environment),) = began
    assert environment["VLLM_API_KEY"] == KEY and VARIABLE not in environment
    said = capsys.readouterr()
    assert "--enable-return-routed-experts" in words and KEY not in " ".join(words) + said.out + said.err
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setenv("VLLM_API_KEY", "by hand")
    assert vllm_command.environment([], False)["VLLM_API_KEY"] == "by hand"


def test_processes_that_others_begin_hold_the_key(monkeypatch):
    """And do not show it where they are printed."""
    asked = Asked(model="m", host="h", port=1)
    charge = Charge(asked=asked, name="server", home="/", restarts=0, deadline=1.0, key=KEY)
    assert KEY not in repr(charge) + repr(Job(home="/", folder=str(Path("/")), key=KEY))
    monkeypatch.setenv(VARIABLE, "")
    hold_key("")
    assert server_key() == ""
    hold_key(KEY)
    assert server_key() == KEY
