"""The Ray cluster of a run: reached or started, its room reserved, its errors in one line."""

import os
import re
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gspo.placement.config import PlacementConfig

REACH = 10.0
"""Seconds that an address has to answer."""
LOCAL: dict[str, Any] = {
    "address": "local",
    "include_dashboard": False,
    "_node_ip_address": "127.0.0.1",
    "_system_config": {"worker_niceness": 0},
}
"""A cluster of this machine alone. Ray's workers would give way to all other processes."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def ray_of(settings: PlacementConfig) -> Any:
    """The module. Raises ValueError where it is not installed."""
    try:
        import ray
    except ImportError:
        raise ValueError(f'placement.on = "{settings.on}" needs Ray: pip install "gspo[ray]"') from None
    return ray


@contextmanager
def connected(settings: PlacementConfig) -> Iterator[Any]:
    """Ray, connected; one that was connected before stays so."""
    ray = ray_of(settings)
    if ray.is_initialized():
        yield ray
        return
    _connect(ray, settings)
    try:
        yield ray
    finally:
        ray.shutdown()


def ensure_connected(settings: PlacementConfig) -> Any:
    """Ray, connected for as long as this process lives."""
    ray = ray_of(settings)
    if not ray.is_initialized():
        _connect(ray, settings)
    return ray


def _connect(ray: Any, settings: PlacementConfig) -> None:
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    try:
        if settings.on == "local":
            ray.init(**LOCAL, **common)
        elif settings.on == "auto":
            _refuse_gone()
            ray.init(address="auto", **common)
        else:
            host, _, port = settings.on.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=min(REACH, settings.deadline)).close()
            ray.init(address=settings.on, **common)
    except (OSError, RuntimeError, ValueError) as error:
        remedy = (
            "is the head node up, and is this its Ray client port (10001)?"
            if settings.on.startswith("ray://")
            else 'start one with "ray start --head", or use placement.on = "local"'
        )
        raise ValueError(f'placement.on = "{settings.on}": no cluster ({first_line(error)}); {remedy}') from None


def _refuse_gone() -> None:
    """Raises OSError for a cluster that has ended and left its address behind: Ray would wait for it for minutes."""
    left = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    address = os.environ.get("RAY_ADDRESS") or (left.read_text().strip() if left.is_file() else "")
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in host:
        socket.create_connection((host, int(port)), timeout=REACH).close()


@contextmanager
def reserved(ray: Any, settings: PlacementConfig) -> Iterator[Any]:
    """Room for all parts of the run, as one placement group. Raises ValueError where there is none in time."""
    from ray.util.placement_group import placement_group, remove_placement_group

    asked = {name: sum(bundle.get(name, 0.0) for bundle in settings.bundles) for name in ("CPU", "GPU")}
    there = ray.cluster_resources()
    if settings.on == "local":
        for name, number in asked.items():
            if number > there.get(name, 0.0):
                raise ValueError(
                    f"placement reserves {number:g} {name}s on this machine, which has {there.get(name, 0.0):g}; lower "
                    "placement.samplers, placement.reward_workers, placement.policies, or what each of them takes "
                    "(fractions are allowed)"
                )
    group = placement_group(settings.bundles, strategy=settings.strategy.upper())
    try:
        if not group.wait(settings.deadline):
            free = {name: number for name, number in ray.available_resources().items() if name in asked}
            raise ValueError(
                f"the run waited {settings.deadline:g} s (placement.deadline) for the Ray cluster to give it {asked}, "
                f"of which {free} is free; reserve less under placement, or add machines"
            )
        yield group
    finally:
        remove_placement_group(group)


def in_bundle(group: Any, number: int) -> Any:
    """Where an actor goes: a bundle of a placement group, or anywhere."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    if group is None:
        return "DEFAULT"
    return PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=number)


def own_group() -> Any:
    """The placement group of the actor that asks, or None outside one."""
    from ray.util import get_current_placement_group

    return get_current_placement_group()


@dataclass(frozen=True, kw_only=True)
class Where:
    """Of one process."""

    node: str
    """Ray's name of its machine."""
    address: str
    """Under which the others of the run reach it."""
    port: int
    """Free there."""


def here(settings: PlacementConfig) -> Where:
    """Of the process that asks, which is one of Ray's. In a cluster of this machine alone nobody else need reach it."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    (address,) = [found["NodeManagerAddress"] for found in ray.nodes() if found["NodeID"] == node]
    if settings.on == "local":
        address = "127.0.0.1"
    with socket.socket() as probe:
        probe.bind((address, 0))
        port = probe.getsockname()[1]
    return Where(node=node, address=address, port=port)


def first_line(error: BaseException) -> str:
    """What an error says, without Ray's report behind it."""
    lines: Sequence[str] = [line.strip() for line in COLOURS.sub("", str(error)).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
