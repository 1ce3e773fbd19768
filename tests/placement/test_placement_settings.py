"""What of the placement needs no Ray: settings, the command line, and what is missing."""

import sys

import pytest

from gspo.cli.main import run
from gspo.cli.verbs import _placing
from gspo.dist.ranks import ALONE, Team
from gspo.placement.cluster import Where, ray_of
from gspo.placement.config import PlacementConfig
from gspo.placement.policies import ranks_at
from gspo.placement.run import refuse_ranks
from gspo.settings import load_config, validate


@pytest.mark.parametrize("on", ["", "local", "auto", "ray://10.0.0.5:10001", "ray://head.example:10001"])
def test_places(on):
    assert validate({"placement": {"on": on}}).placement.is_set == bool(on)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"on": "ray://head"}, r"placement.on is 'ray://head'; it must be \"local\", \"auto\", an address such as"),
        ({"on": "10.0.0.5:10001"}, "placement.on is '10.0.0.5:10001'"),
        ({"on": "local", "samplers": -1}, "placement.samplers is -1; it must be at least 0"),
        ({"sampler_cpus": 0}, "placement.sampler_cpus is 0.0; it must be above 0"),
        ({"deadline": 0}, "placement.deadline is 0.0; it must be above 0"),
        ({"sampler": 2}, "unknown key 'placement.sampler'; did you mean 'samplers'"),
    ],
)
def test_wrong_settings(settings, line):
    with pytest.raises(ValueError, match=line):
        validate({"placement": settings})


def test_two_places_for_one_sampler():
    with pytest.raises(ValueError, match=r'placement.samplers = 1 samples in Ray.* sampler = "vllm" elsewhere'):
        validate({"placement": {"on": "local"}, "sampler": "vllm"})
    with pytest.raises(
        ValueError, match=r'policy = "diffusion" samples in its own process; set placement.samplers = 0'
    ):
        validate({"placement": {"on": "local"}, "policy": "diffusion"})
    assert validate({"placement": {"on": "local", "samplers": 0}, "sampler": "vllm"}).sampler.name == "vllm"


def test_samplers_beside_training():
    placed = {"on": "local"}
    assert validate({"placement": placed, "max_policy_lag": 2}).max_policy_lag == 2
    with pytest.raises(ValueError, match="max_policy_lag = 2 samples while the weights move"):
        validate({"placement": {**placed, "samplers": 0}, "max_policy_lag": 2})


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"policies": 0}, "placement.policies is 0; it must be at least 1"),
        ({"policies": 2, "policy_gpus": 0.5}, r"placement.policies = 2 are ranks, .* set it to 1 or 0"),
        ({"servers": 1}, r"placement.servers = 1 and placement.samplers = 1 both sample; set placement.samplers = 0"),
        ({"servers": -1}, "placement.servers is -1; it must be at least 0"),
        ({"server_cpus": 0}, "placement.server_cpus is 0; it must be above 0"),
    ],
)
def test_wrong_numbers(settings, line):
    with pytest.raises(ValueError, match=line):
        PlacementConfig(on="local", **settings)


def test_servers_are_vllms_and_the_runs_own():
    placed = {"on": "local", "samplers": 0, "servers": 2}
    assert validate({"placement": placed, "sampler": "vllm"}).placement.places_servers
    for sampler in ("in_process", "process", "sglang"):
        with pytest.raises(ValueError, match=rf'starts vLLM servers, and sampler = "{sampler}" asks none'):
            validate({"placement": placed, "sampler": sampler})
    with pytest.raises(ValueError, match=r"sampler.url names others: leave one of them out"):
        validate({"placement": placed, "sampler": {"name": "vllm", "url": "http://10.0.0.5:8000"}})


def test_placed_servers_are_for_runs(tmp_path, capsys):
    words = ["--placement.on", "local", "--placement.samplers", "0", "--placement.servers", "1"]
    assert run(["check", *words, "--sampler.name", "vllm"]) == 2
    assert "placement.servers = 1 are there while gspo train or gspo resume runs" in capsys.readouterr().err


def test_ranks_meet_at_the_first_and_know_who_shares_their_machine():
    places = [Where(node=node, address=f"10.0.0.{node}", port=7000 + i) for i, node in enumerate("1121")]
    ranks = ranks_at(places)
    assert [(r.rank, r.size, r.local_rank, r.local_size) for r in ranks] == [
        (0, 4, 0, 3),
        (1, 4, 1, 3),
        (2, 4, 0, 1),
        (3, 4, 2, 3),
    ]
    assert {r.meeting for r in ranks} == {"tcp://10.0.0.1:7000"} and all(r.sees_own_gpu for r in ranks)
    assert ranks_at(places[:1]) == [ALONE]


def test_bundles_are_the_policy_the_samplers_the_rewards():
    settings = PlacementConfig(on="auto", samplers=2, sampler_gpus=1, reward_workers=1, reward_cpus=0.5, policy_gpus=1)
    sampler = {"CPU": 1.0, "GPU": 1}
    assert settings.bundles == [{"CPU": 1.0, "GPU": 1}, sampler, sampler, {"CPU": 0.5}]
    assert settings.bundle("sampler", 1) == 2 and settings.bundle("reward", 0) == 3
    settings = PlacementConfig(on="auto", policies=2, policy_gpus=1, samplers=0, servers=2, server_gpus=4)
    policy, server = {"CPU": 1.0, "GPU": 1}, {"CPU": 1.0, "GPU": 4}
    assert settings.bundles == [policy, policy, server, server]
    assert settings.bundle("policy", 1) == 1 and settings.bundle("server", 0) == 2


def test_on_is_short_for_placement_on():
    assert _placing(["x.toml", "--on", "local", "--on=auto", "--one", "1"]) == [
        "x.toml",
        "--placement.on",
        "local",
        "--placement.on=auto",
        "--one",
        "1",
    ]
    assert load_config(None, _placing(["--on", "ray://10.0.0.5:10001"])).placement.on == "ray://10.0.0.5:10001"


def test_without_ray_there_is_a_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r'placement.on = "local" needs Ray: pip install "gspo\[ray\]"'):
        ray_of(PlacementConfig(on="local"))
    assert run(["train", "--on", "local", "--folder", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == 'gspo: placement.on = "local" needs Ray: pip install "gspo[ray]"\n'
    assert not (tmp_path / "run").exists()


def test_ranks_of_torchrun_are_refused():
    with pytest.raises(ValueError, match=r'placement.on = "local" starts the ranks itself .*, and torchrun started 2'):
        refuse_ranks(Team(0, 2), PlacementConfig(on="local"))
