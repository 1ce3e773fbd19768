"""A reward function in a process of its own, which is killed when it takes too long and started again."""

import math
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from gspo.rewards.calling import TIMEOUT, Batch, Outcome, Signature

LOAD_SECONDS = 300.0
"""How long a reward's file may take to import (it may load a judge model)."""
GRACE_SECONDS = 2.0
"""An async function keeps its own deadline and reports which rows met it; only past this is it killed."""


class WorkerDied(Exception):
    """The process ended by itself while it was scoring."""


class Worker:
    """One process with one function. Final; close it."""

    def __init__(self, request: dict[str, Any]):
        self._request = request
        self._stop: Callable[[], Any] | None = None
        self.signature = self._start()

    def _start(self) -> Signature:
        ours, theirs = socket.socketpair()
        with theirs:
            # A session of its own: killing it also ends what the function started, and an interrupt at the
            # terminal reaches only this process, which then closes its workers in order.
            process = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).with_name("worker.py")), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a function prints must not mix with this program's output
                start_new_session=True,
            )
        self._process, self._pipe = process, Connection(ours.detach())
        self._stop = weakref.finalize(self, _end, process, self._pipe)
        try:
            self._pipe.send(self._request)
            kind, value = self._receive(LOAD_SECONDS)
        except TimeoutError:
            raise ValueError(f"importing it took longer than {LOAD_SECONDS:.0f} s") from None
        except WorkerDied as died:
            raise ValueError(f"its process ended while importing it: {died}") from None
        if kind == "failed":
            self.close()
            raise ValueError(value)
        return Signature(**value)

    def score(self, batch: Batch, timeout: float, deadline: float) -> list[Outcome]:
        """One outcome per row. Past `deadline` seconds the process is killed and every row is a timeout."""
        try:
            if self._stop is None:
                self._start()
            self._pipe.send((vars(batch), timeout))
            return self._receive(deadline)
        except TimeoutError:
            return [TIMEOUT] * len(batch)
        except Exception as error:  # it died, could not start again, or a column cannot be pickled
            return [("error", math.nan, str(error))] * len(batch)

    def _receive(self, seconds: float) -> Any:
        try:
            if self._pipe.poll(seconds):
                return self._pipe.recv()
        except (EOFError, ConnectionError):
            code = self._process.wait()
            self.close()
            raise WorkerDied(f"the reward's process ended with exit code {code}") from None
        self.close()
        raise TimeoutError

    def close(self) -> None:
        if self._stop is not None:
            self._stop()
            self._stop = None


def _end(process: subprocess.Popen, pipe: Connection) -> None:
    """Kills the process and everything it started."""
    pipe.close()
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class ProcessReward:
    """Scores a batch in worker processes: row by row for row functions, in one call for batch and async ones."""

    def __init__(self, request: dict[str, Any], *, timeout: float, workers: int):
        self._request = {**request, "sys_path": list(sys.path)}
        self._timeout, self._count = timeout, workers
        self._workers = [Worker(self._request)]
        self.signature = self._workers[0].signature

    def score(self, batch: Batch) -> list[Outcome]:
        if self.signature.kind == "batch" or self.signature.is_async:
            grace = GRACE_SECONDS if self.signature.is_async else 0.0
            return self._workers[0].score(batch, self._timeout, self._timeout + grace)
        while len(self._workers) < min(self._count, len(batch)):
            self._workers.append(Worker(self._request))
        outcomes: list[Outcome] = [TIMEOUT] * len(batch)
        rows, lock = iter(range(len(batch))), threading.Lock()

        def drain(worker: Worker) -> None:
            while True:
                with lock:
                    i = next(rows, None)
                if i is None:
                    return
                outcomes[i] = worker.score(batch.rows(i, i + 1), self._timeout, self._timeout)[0]

        if len(self._workers) == 1:
            drain(self._workers[0])
        else:
            with ThreadPoolExecutor(len(self._workers)) as pool:
                list(pool.map(drain, self._workers))
        return outcomes

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
