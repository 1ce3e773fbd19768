"""What of the placement needs no Ray: settings, the command line, and what is missing."""

import sys

import pytest

from gspo.cli.main import run
from gspo.cli.verbs import _placing
from gspo.dist.ranks import Team
from gspo.placement.cluster import ray_of
from gspo.placement.config import PlacementConfig
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


def test_bundles_are_the_policy_the_samplers_the_rewards():
    settings = PlacementConfig(on="auto", samplers=2, sampler_gpus=1, reward_workers=1, reward_cpus=0.5, policy_gpus=1)
    sampler = {"CPU": 1.0, "GPU": 1}
    assert settings.bundles == [{"CPU": 1.0, "GPU": 1}, sampler, sampler, {"CPU": 0.5}]


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
    with pytest.raises(ValueError, match=r'placement.on = "local" has one policy process, and torchrun started 2'):
        refuse_ranks(Team(0, 2), PlacementConfig(on="local"))
