"""vLLM servers in the care of Ray actors: started, started again when they die, ended with the run.

A server is not Ray's process but its actor's, and ends with it (`leash`). Its port is chosen before its actor begins,
and stays, so that a run finds it again after a death of either.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx

from gspo.config import RunConfig
from gspo.placement import leash
from gspo.placement.cluster import Where, here, in_bundle
from gspo.placement.config import PlacementConfig
from gspo.policies.config import CausalLMConfig
from gspo.samplers.config import ServerConfig
from gspo.samplers.key import hold_key, server_key
from gspo.samplers.vllm_command import Asked, Command, command_of, refuse_taken_port

LOOK = 0.5
"""Seconds between two looks at a server that is starting."""
STEADY = 60.0
"""Seconds after which a server that is up has not died in a row."""
ENDING = leash.GRACE + 2.0
"""Seconds in which a server that was told to end has ended, and its port is free."""


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What an actor is to keep up."""

    asked: Asked
    name: str
    """What it is called in messages."""
    home: str
    """Working folder: where relative paths begin."""
    restarts: int
    deadline: float
    key: str = field(default="", repr=False)
    """What the server asks of its clients, as of `GSPO_SERVER_KEY` where the run was started."""

    @property
    def url(self) -> str:
        return f"http://{self.asked.host}:{self.asked.port}"


class Leashed:
    """A command that ends with this process, and what it has become."""

    def __init__(self, command: Command, log: Path) -> None:
        with log.open("ab") as file:
            opened = subprocess.Popen(
                [sys.executable, "-I", leash.__file__, *command.words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=command.environment,
                text=True,
            )
        opened.wait()  # it goes on as a child of nobody
        assert opened.stdin is not None and opened.stdout is not None
        self._hand, self._says = opened.stdin, opened.stdout
        self.pid = int(self._says.readline())
        self.code: int | None = None
        self.is_over = threading.Event()
        threading.Thread(target=self._wait, daemon=True, name="gspo-server").start()

    def _wait(self) -> None:
        said = self._says.readline()
        if not said:  # the leash itself was killed
            leash.end_group(self.pid, signal.SIGKILL)
        self.code = int(said or -signal.SIGKILL)
        self._says.close()
        self._hand.close()
        self.is_over.set()

    def end(self) -> None:
        """Returns when it has ended."""
        self._hand.close()
        self.is_over.wait(ENDING)


class ServerActor:
    """Keeps one server up. A thread does; `ready` waits for it, and `said` and `stop` are answered meanwhile."""

    def __init__(self, charge: Charge) -> None:
        self._charge = charge
        self._said: SimpleQueue[str] = SimpleQueue()
        self._settled, self._is_stopped = threading.Event(), threading.Event()
        self._error: Exception | None = None
        self._server: Leashed | None = None
        threading.Thread(target=self._work, daemon=True, name="gspo-servers").start()

    def pid(self) -> int:
        return os.getpid()

    def ready(self) -> None:
        """Waits until it is up for the first time. Raises ValueError where it does not come."""
        self._settled.wait()
        if self._error is not None:
            raise self._error

    def said(self) -> str:
        """What is new, a line each."""
        found = []
        while not self._said.empty():
            found.append(f"{self._charge.name} {self._said.get()}\n")
        return "".join(found)

    def stop(self) -> None:
        self._is_stopped.set()
        if self._server is not None:
            self._server.end()
        shutil.rmtree(self._model, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    @property
    def _model(self) -> Path:
        return self._folder / "model"

    @property
    def _folder(self) -> Path:
        return Path(tempfile.gettempdir()) / "gspo-servers" / str(self._charge.asked.port)

    def _work(self) -> None:
        try:
            os.chdir(self._charge.home)
            hold_key(self._charge.key)
            self._folder.mkdir(parents=True, exist_ok=True)
            self._keep()
        except Exception as error:
            self._error = ValueError(f"{self._charge.name}: {error}")
            self._said.put(f"is given up: {error}")
        self._settled.set()

    def _keep(self) -> None:
        """Until `stop`, or too many deaths in a row."""
        asked, deaths = replace(self._charge.asked, tiny_folder=str(self._model)), 0
        while not self._is_stopped.is_set():
            self._wait_for_port()
            self._said.put(f"starts at {self._charge.url} (log: {self._log})")
            server = self._server = Leashed(command_of(asked, lambda text: None), self._log)
            is_up, began = self._comes_up(server), time.monotonic()
            if is_up:
                self._said.put("is up")
                self._settled.set()
                server.is_over.wait()
            if self._is_stopped.is_set():
                return
            why = f"ended (exit code {server.code})"
            if not self._settled.is_set():
                raise ValueError(f"{why} before it answered: {self._last_words()}")
            deaths = 1 if is_up and time.monotonic() - began > STEADY else deaths + 1
            if deaths > self._charge.restarts:
                raise ValueError(f"{why} {deaths} times in a row: {self._last_words()}")
            self._said.put(f"{why}: again, {deaths} of {self._charge.restarts}")

    def _comes_up(self, server: Leashed) -> bool:
        """False where it ends instead. Raises ValueError after `deadline`."""
        until = time.monotonic() + self._charge.deadline
        while not server.is_over.wait(LOOK):
            try:
                if httpx.get(f"{self._charge.url}/health", trust_env=False).status_code == 200:
                    return True
            except httpx.TransportError:
                pass
            if time.monotonic() > until:
                server.end()
                waited = f"{self._charge.deadline:g} s (placement.deadline)"
                raise ValueError(f"did not answer within {waited}: {self._last_words()}")
        return False

    def _wait_for_port(self) -> None:
        """The server before this one, whose actor died, may be about to end."""
        until = time.monotonic() + ENDING
        while True:
            try:
                return refuse_taken_port(self._charge.asked.host, self._charge.asked.port)
            except ValueError:
                if time.monotonic() > until:
                    raise
            time.sleep(LOOK)

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return f"{lines[-1][-200:] if lines else 'it said nothing'} (log: {self._log})"


class Servers:
    """The actors, as who started the run sees them; of a run without servers there are none."""

    def __init__(self, ray: Any, config: RunConfig, group: Any, home: str) -> None:
        settings = config.placement
        self._ray, self._deadline = ray, settings.deadline
        self._charges = [_charge(config, home, i, place) for i, place in enumerate(_places(ray, settings, group))]
        kind = ray.remote(ServerActor)
        self._actors = [
            kind.options(
                num_cpus=settings.server_cpus,
                num_gpus=settings.server_gpus,
                max_restarts=-1,
                max_task_retries=-1,
                max_concurrency=4,
                scheduling_strategy=in_bundle(group, settings.bundle("server", i)),
            ).remote(charge)
            for i, charge in enumerate(self._charges)
        ]
        self._asked = [actor.said.remote() for actor in self._actors]

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(charge.url for charge in self._charges)

    def pids(self) -> list[int]:
        """Of the actors."""
        return self._ray.get([actor.pid.remote() for actor in self._actors], timeout=self._deadline)

    def said(self) -> str:
        """What is new of each; one that does not answer at once is heard later."""
        found = ""
        for i, asked in enumerate(self._asked):
            answered, _ = self._ray.wait([asked], timeout=0)
            if answered:
                found += self._ray.get(asked)
                self._asked[i] = self._actors[i].said.remote()
        return found

    def wait(self, show: Callable[[str], None], is_asked: Callable[[], bool]) -> None:
        """Until all are up. Raises ValueError where one does not come, KeyboardInterrupt when asked to stop."""
        waiting = [actor.ready.remote() for actor in self._actors]
        until = time.monotonic() + 2 * self._deadline  # of Ray's processes, and of the servers
        while waiting:
            settled, waiting = self._ray.wait(waiting, timeout=LOOK)
            try:
                self._ray.get(settled)
            except self._ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, ValueError | OSError):
                    raise error.cause from None
                raise
            show(self.said())
            if is_asked():
                raise KeyboardInterrupt
            if time.monotonic() > until:
                raise ValueError(
                    f"waited {2 * self._deadline:g} s (twice placement.deadline) for the vLLM servers: their processes "
                    "do not answer (see `ray status`)"
                )

    def close(self) -> None:
        """End the servers, then the actors."""
        ending = [actor.stop.remote() for actor in self._actors]
        self._ray.wait(ending, num_returns=len(ending), timeout=ENDING + LOOK)
        for actor in self._actors:
            self._ray.kill(actor)


@contextmanager
def kept_up(
    ray: Any, config: RunConfig, group: Any, home: str, show: Callable[[str], None], is_asked: Callable[[], bool]
) -> Iterator[Servers]:
    """The run's servers, up."""
    servers = Servers(ray, config, group, home)
    try:
        servers.wait(show, is_asked)
        yield servers
    finally:
        servers.close()


def _places(ray: Any, settings: PlacementConfig, group: Any) -> list[Where]:
    """A port on the machine of each bundle."""
    find = ray.remote(here)
    asked = [
        find.options(num_cpus=0, scheduling_strategy=in_bundle(group, settings.bundle("server", i))).remote(settings)
        for i in range(settings.servers)
    ]
    return ray.get(asked, timeout=settings.deadline)


def _charge(config: RunConfig, home: str, number: int, place: Where) -> Charge:
    settings, sampler = config.placement, config.sampler
    sends_adapters = isinstance(sampler, ServerConfig) and sampler.lora == "adapter"
    asked = Asked(
        model=config.model,
        host=place.address,
        port=place.port,
        python=settings.server_python,
        dtype=config.dtype,
        lora_rank=config.lora.rank if sends_adapters else 0,
        routes=isinstance(config.policy, CausalLMConfig) and config.policy.routing == "R3",
        flags=settings.server_flags,
        tiny=config.tiny,
        says_python="placement.server_python",
    )
    return Charge(
        asked=asked,
        name=f"server {number} of {settings.servers}",
        home=home,
        restarts=settings.restarts,
        deadline=settings.deadline,
        key=server_key(),
    )
