"""Asking a server that may be slow, hung, dead or started again: deadlines, growing pauses, and who waits for whom."""

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import httpx

from gspo.samplers.base import SamplerLost
from gspo.samplers.key import VARIABLE, server_key

T = TypeVar("T")
CONNECT = 5.0
"""Seconds in which a server accepts a connection."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 15.0
"""Seconds between two attempts: doubled from the one to the other."""
MOST_FAULTS = 4
"""Answers of a server that say that it failed (status 5xx), in a row, after which it is not asked again."""
NO_KEY = 401
"""Status of a server, or of what stands before it, that wants another key, or any."""


class Unanswered(Exception):
    """No answer: refused, reset, timed out. Worth asking again."""


class Failed(Unanswered):
    """The server answered that it failed (status 5xx). Worth asking again a few times."""


class Refused(SamplerLost):
    """The server understood and said no, so that asking again is useless; `status` is the answer's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Link:
    """One server's address; `kind` is what it is called in messages ("vLLM"). Shared by threads.

    Every request carries the key that the environment holds when this is made.
    """

    def __init__(self, url: str, kind: str, timeout: float) -> None:
        self.url, self.kind, self.timeout = url.rstrip("/"), kind, timeout
        self._key = server_key()
        self._client = httpx.Client(
            base_url=self.url,
            timeout=httpx.Timeout(timeout, connect=min(CONNECT, timeout)),
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,
        )
        weakref.finalize(self, self._client.close)

    def __str__(self) -> str:
        return f"the {self.kind} server at {self.url}"

    def get(self, path: str, **params: Any) -> Any:
        return self._answer("GET", path, params=params)

    def post(self, path: str, body: Any = None, **params: Any) -> Any:
        return self._answer("POST", path, params=params, json=body)

    def _answer(self, method: str, path: str, **what: Any) -> Any:
        """The JSON of an answer, its text where it is not JSON; None where it is empty."""
        try:
            response = self._client.request(method, path, **what)
        except httpx.TimeoutException:
            raise Unanswered(f"{path} had no answer within {self.timeout:g} s") from None
        except httpx.TransportError as error:
            raise Unanswered(f"{path}: {error or type(error).__name__}") from None
        if response.status_code >= 500:
            raise Failed(f"{path} answered {response.status_code}: {self._reason(response)}")
        if _asks_for_key(response):
            how = f"does not take the key in {VARIABLE}" if self._key else f"wants a key: set {VARIABLE}"
            raise Refused(f"{self} {how}", NO_KEY)
        if response.status_code >= 400:
            raise Refused(
                f"{self} refused {path} with {response.status_code}: {self._reason(response)}", response.status_code
            )
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError:
            return response.text

    def _reason(self, response: httpx.Response) -> str:
        """In its words, which may repeat what it was sent."""
        said = response.text.replace(self._key, "(the key)") if self._key else response.text
        return " ".join(said.split())[:300] or "without a reason"


def _asks_for_key(response: httpx.Response) -> bool:
    status = response.status_code
    return status == NO_KEY or (status == 403 and "www-authenticate" in response.headers)


class Patience:
    """The wait of one task: pauses that double, until `deadline` seconds are over since it first had no answer."""

    def __init__(self, deadline: float, is_over: Callable[[], bool] = lambda: False) -> None:
        self.deadline, self.is_over = deadline, is_over
        self.got_on()

    def got_on(self) -> None:
        self.since: float | None = None
        self.pause, self.faults = FIRST_PAUSE, 0

    def wait(self, task: str, error: Unanswered) -> None:
        """Sleep before the next attempt, or raise `SamplerLost`: "TASK has waited ..."."""
        self.since = time.monotonic() if self.since is None else self.since
        waited = time.monotonic() - self.since
        self.faults = self.faults + 1 if isinstance(error, Failed) else 0
        if self.faults >= MOST_FAULTS:
            raise SamplerLost(f"{task} failed {self.faults} times: {error}")
        if waited + self.pause > self.deadline:
            raise SamplerLost(f"{task} waited {waited:.0f} s (sampler.deadline = {self.deadline:g}): {error}")
        end = time.monotonic() + self.pause
        while time.monotonic() < end and not self.is_over():
            time.sleep(min(0.1, self.pause))
        self.pause = min(2 * self.pause, LONGEST_PAUSE)


def spread(jobs: Sequence[Callable[[Callable[[], bool]], T]], workers: int) -> Iterator[tuple[int, T]]:
    """(number, result) of jobs as they end, at most `workers` at once, begun in order.

    A job is called with a function that says whether its result is still wanted. The first error ends all; threads are
    daemons, so that one that still waits for a server holds up nobody.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, T | None, BaseException | None]] = queue.SimpleQueue()
    is_over = threading.Event()
    for number in range(len(jobs)):
        todo.put(number)

    def work() -> None:
        while not is_over.is_set():
            try:
                number = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((number, jobs[number](is_over.is_set), None))
            except BaseException as error:  # handed to the thread that waits
                done.put((number, None, error))

    for _ in range(min(workers, len(jobs))):
        threading.Thread(target=work, daemon=True, name="gspo-sampler").start()
    try:
        for _ in jobs:
            number, result, error = done.get()
            if error is not None:
                raise error
            yield number, result  # type: ignore[misc]
    finally:
        is_over.set()
