"""Weights on a disk that servers read too: a folder of the run's own, and a label by which a server tells which it has.

The label names version and folder ("gspo 12 /shared/run-3f9c1b2a/12"). The run holds a lock in its folder as long as it
lives, so that another run that finds the label can tell whether its owner still needs the server.
"""

import copy
import fcntl
import os
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from gspo.models import save_model

MARK = "gspo"
LOCK = "lock"
FOLDER = "gspo-weights"
Save = Callable[[Any, Path], None]
"""(policy, folder)"""


@dataclass(frozen=True)
class Snapshot:
    """Weights of one version, as they were when they were saved."""

    version: int
    folder: Path
    base: Path | None = field(default=None, compare=False)
    """Where `folder` has adapters alone: the weights that they stand on, which do not move."""

    @property
    def label(self) -> str:
        return f"{MARK} {self.version} {self.folder}"


def read_label(label: str) -> Snapshot | None:
    """None for a label that no run of gspo gave: a server just started, or one of somebody else's."""
    mark, _, rest = label.partition(" ")
    version, _, folder = rest.partition(" ")
    if mark != MARK or not folder or not version.removeprefix("-").isdigit():
        return None
    return Snapshot(int(version), Path(folder))


def save_policy(policy: Any, folder: Path) -> None:
    """The network's weights as safetensors, adapters merged."""
    save_model(policy.network.model, folder)


def save_adapters(policy: Any, folder: Path) -> None:
    """The adapters alone, as PEFT writes them."""
    policy.network.model.save_pretrained(folder)


def save_base(policy: Any, folder: Path) -> None:
    """The model without its adapters."""
    copy.deepcopy(policy.network.model).unload().save_pretrained(folder)


class WeightStore:
    """This run's folder under `shared`; it goes when the process ends, and with it what killed runs left behind.

    `save_base`: what is saved once, beside what `save` writes of every version.
    """

    def __init__(self, shared: str, save: Save = save_policy, save_base: Save | None = None) -> None:
        self.save, self.save_base = save, save_base
        root = Path(shared or Path(tempfile.gettempdir()) / FOLDER).expanduser().absolute()
        try:
            root.mkdir(parents=True, exist_ok=True)
            for left in root.glob("run-*"):
                if is_alive(left) == "no":
                    shutil.rmtree(left, ignore_errors=True)
            self.folder = root / f"run-{secrets.token_hex(4)}"
            self.folder.mkdir()
        except OSError as error:
            raise ValueError(f"sampler.shared: no weights can be written to {root} ({error.strerror})") from None
        self._written: list[Snapshot] = []
        self._lock = _locked(self.folder)
        self.close = weakref.finalize(self, _leave, self._lock, self.folder, os.getpid())

    def write(self, policy: Any, version: int) -> Snapshot:
        """Whole or not at all; a version is saved once."""
        if self._written and self._written[-1].version == version:
            return self._written[-1]
        base = None if self.save_base is None else self.folder / "base"
        if self.save_base is not None and base is not None and not base.exists():
            self._whole(partial(self.save_base, policy), base)
        snapshot = Snapshot(version, self.folder / str(version), base)
        self._whole(partial(self.save, policy), snapshot.folder)
        self._written.append(snapshot)
        return snapshot

    def _whole(self, save: Callable[[Path], None], folder: Path) -> None:
        unfinished = self.folder / "partial"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        save(unfinished)
        unfinished.replace(folder)

    def drop_before(self, snapshot: Snapshot) -> None:
        """What was saved earlier is needed no more."""
        while self._written[0] != snapshot:
            shutil.rmtree(self._written.pop(0).folder, ignore_errors=True)

    def owns(self, snapshot: Snapshot) -> bool:
        return snapshot.folder.parent == self.folder


def is_alive(run: Path) -> Literal["yes", "no", "unknown"]:
    """Whether the run with this folder still goes on; unknown where the folder cannot be seen from here."""
    try:
        with (run / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "yes"
    except OSError:
        return "unknown"
    return "no"


def _locked(folder: Path) -> IO[bytes]:
    file = (folder / LOCK).open("wb")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _leave(lock: IO[bytes], folder: Path, process: int) -> None:
    if os.getpid() != process:  # a forked child ends: the folder is its parent's
        return
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()
