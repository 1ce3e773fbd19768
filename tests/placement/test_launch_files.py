"""The launch files under examples/launch say what bash, YAML and gspo understand."""

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gspo.cli.verbs import _placing
from gspo.settings import find_recipe, load_config

LAUNCH = Path(__file__).parents[2] / "examples" / "launch"


def training(text: str) -> list[str]:
    """The words behind `train` in the one command that begins a run."""
    joined = text.replace("\\\n", " ").replace("(", "\n").replace(")", "\n")
    commands = [line.strip() for line in joined.splitlines()]
    found = [line.partition("train ")[2] for line in commands if line.startswith(("gspo train ", "train "))]
    assert len(found) == 1, found
    return shlex.split(found[0], comments=True)


def configured(words: list[str]) -> Any:
    return load_config(find_recipe(words[0]), _placing(words[1:]))


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.sbatch")), ids=lambda path: path.name)
def test_slurm(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text()
    assert text.startswith("#!/bin/bash\n") and "#SBATCH --nodes=" in text
    config = configured(training(text))
    assert config.placement.is_set == ("ray start" in text)
    nodes = int(text.partition("--nodes=")[2].split()[0])
    gpus = nodes * int(text.partition("--gpus-per-node=")[2].split()[0])
    if config.placement.is_set:
        assert sum(bundle.get("GPU", 0) for bundle in config.placement.bundles) == gpus
    else:
        assert config.prompts_per_step % gpus == 0


def test_kuberay():
    job = yaml.safe_load((LAUNCH / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    config = configured(training(job["spec"]["entrypoint"]))
    cluster = job["spec"]["rayClusterSpec"]
    workers = cluster["workerGroupSpecs"]
    there = {"CPU": 0.0, "GPU": 0.0}
    for group in workers:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        for container in group["template"]["spec"]["containers"]:
            limits = container["resources"]["limits"]
            there["CPU"] += group["replicas"] * float(limits["cpu"])
            there["GPU"] += group["replicas"] * float(limits["nvidia.com/gpu"])
    assert all(sum(bundle.get(name, 0) for bundle in config.placement.bundles) <= there[name] for name in there)
    for group in (cluster["headGroupSpec"], *workers):  # every mount has its volume, and all see the run's folder
        spec = group["template"]["spec"]
        names = {volume["name"] for volume in spec["volumes"]}
        mounts = [mount for container in spec["containers"] for mount in container["volumeMounts"]]
        assert {mount["name"] for mount in mounts} == names
        assert any(config.folder.startswith(mount["mountPath"]) for mount in mounts)
