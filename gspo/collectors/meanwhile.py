"""Work on groups that have ended, in a thread of its own, while others are still being sampled."""

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

Done = TypeVar("Done")


class Meanwhile(Generic[Done]):
    """Calls `work` with the numbers of groups that have come since its last call, so that slow rewards see several.

    What is called together depends on time; with `work` that treats each group alone, what comes out does not.
    """

    def __init__(self, work: Callable[[list[int]], list[Done]]) -> None:
        self._work = work
        self._waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._done: dict[int, Done] = {}
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def over(self, numbers: Iterable[int]) -> dict[int, Done]:
        """Results by number; `numbers` is consumed here, its arrival is what the work overlaps with."""
        try:
            for number in numbers:
                self._waiting.put(number)
        finally:
            self._waiting.put(None)
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self._done

    def _run(self) -> None:
        is_last = False
        while not is_last:
            batch = [self._waiting.get()]
            while not self._waiting.empty():
                batch.append(self._waiting.get())
            is_last = batch[-1] is None
            numbers = [number for number in batch if number is not None]
            if not numbers or self._error is not None:
                continue
            try:
                self._done.update(zip(numbers, self._work(numbers), strict=True))
            except BaseException as error:  # carried to the thread that waits
                self._error = error
