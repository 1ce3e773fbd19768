"""Calls of environments side by side, each under a deadline: a call that hangs is given up, the others go on.

Plain functions run in daemon threads, a few at a time; what returns an awaitable goes to one event loop, all of them
in flight together. A plain function that hangs keeps its thread until the process ends: Python cannot stop it, so a
new thread takes its place. A coroutine that blocks its loop instead of awaiting makes its loop be given up too.
"""

import asyncio
import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

from gspo.rewards.calling import describe

LANES = 16
"""Plain calls under way at once."""
GRACE = 1.0
"""Seconds past a deadline after which a loop that has not answered is taken to be blocked."""


@dataclass(frozen=True, kw_only=True)
class Called:
    """What became of one call."""

    status: Literal["ok", "error", "timeout"]
    value: Any = None
    message: str = ""
    seconds: float = 0.0


class Calls:
    """Makes calls together. Holds an event loop while it lives: close it, or use it in a `with` block."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def together(self, calls: Sequence[Callable[[], Any]], timeout: float) -> list[Called]:
        """What became of each call, in their order; no call is waited for longer than `timeout` seconds."""
        batch = _Batch(calls, timeout, self._running_loop)
        found = batch.results()
        if batch.blocks_loop:
            self._loop = None  # its thread is lost with it
        return found

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_turn, args=(self._loop,), daemon=True)
            self._thread.start()
        return self._loop

    def close(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(GRACE)
            self._loop = None

    def __enter__(self) -> "Calls":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Batch:
    """Some calls under way. `_changed` guards everything; a result that comes after it was given up is dropped."""

    def __init__(
        self, calls: Sequence[Callable[[], Any]], timeout: float, loop: Callable[[], asyncio.AbstractEventLoop]
    ) -> None:
        self.calls, self.timeout, self._loop = calls, timeout, loop
        self.blocks_loop = False
        self._waiting = deque(range(len(calls)))
        self._started: dict[int, float] = {}
        self._futures: dict[int, Future] = {}
        self._done: dict[int, Called] = {}
        self._changed = threading.Condition()

    def results(self) -> list[Called]:
        with self._changed:
            for _ in range(min(LANES, len(self.calls))):
                self._start_lane()
            while len(self._done) < len(self.calls):
                now = time.perf_counter()
                running = {i: at for i, at in self._started.items() if i not in self._done}
                for i, started in running.items():
                    if now - started >= self.timeout:
                        self._give_up(i)
                left = [at + self.timeout - now for i, at in running.items() if i not in self._done]
                if len(self._done) < len(self.calls):
                    self._changed.wait(min([*left, self.timeout]))  # what starts meanwhile has longer
        # Outside the lock: the loop may be waiting for it to hand in a result.
        self.blocks_loop = any(self._done[i].status == "timeout" for i in self._futures) and not self._answers()
        return [self._done[i] for i in range(len(self.calls))]

    def _start_lane(self) -> None:
        threading.Thread(target=self._lane, daemon=True).start()

    def _lane(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    return
                number = self._waiting.popleft()
                self._started[number] = time.perf_counter()
            try:
                value = self.calls[number]()
            except Exception as error:
                self._finish(number, Called(status="error", message=describe(error)))
                continue
            if not inspect.isawaitable(value):
                self._finish(number, Called(status="ok", value=value))
                continue
            with self._changed:
                if number not in self._done:
                    future = asyncio.run_coroutine_threadsafe(_awaited(value), self._loop())
                    self._futures[number] = future
                    future.add_done_callback(lambda future, number=number: self._arrived(number, future))

    def _arrived(self, number: int, future: Future) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._finish(number, Called(status="ok", value=future.result()))
        else:
            self._finish(number, Called(status="error", message=describe(error)))

    def _finish(self, number: int, called: Called) -> None:
        with self._changed:
            seconds = time.perf_counter() - self._started[number]
            known = Called(status=called.status, value=called.value, message=called.message, seconds=seconds)
            self._done.setdefault(number, known)
            self._changed.notify_all()

    def _give_up(self, number: int) -> None:
        """Holds `_changed`."""
        message = f"no answer within {self.timeout:g} s"
        self._done[number] = Called(status="timeout", message=message, seconds=self.timeout)
        if number in self._futures:
            self._futures[number].cancel()
        elif self._waiting:
            self._start_lane()

    def _answers(self) -> bool:
        """Whether the event loop still turns."""
        answered = threading.Event()
        self._loop().call_soon_threadsafe(answered.set)
        return answered.wait(GRACE)


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    """A loop's thread: until it is stopped; what was given up and is still on its way is cancelled."""
    loop.run_forever()
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))  # one turn, in which they end
    loop.close()


async def _awaited(value: Any) -> Any:
    return await value
