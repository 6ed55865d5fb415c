"""Threads that do for an event loop what would block it: two hops in half the time of concurrent.futures."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Call(Generic[T]):
    """One call and what came of it. `ended` is set when it is done, or by `end`, whichever is first.

    given_up gets what it returns, in a thread, where nobody waits for it any more (`leave`).
    """

    __slots__ = ("_given_up", "_left", "_lock", "_loop", "_work", "done", "ended", "error", "result")

    def __init__(
        self,
        work: Callable[[], T],
        loop: asyncio.AbstractEventLoop,
        ended: asyncio.Future[None],
        given_up: Callable[[T], None] | None,
    ) -> None:
        self._work, self._loop, self._given_up = work, loop, given_up
        self._lock, self._left = threading.Lock(), False
        self.ended, self.done = ended, False
        self.result: T | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """In a thread: the work; and where that is done already, giving up what it returned."""
        if not self.done:
            try:
                self.result = self._work()
            except BaseException as error:
                self.error = error
            with self._lock:
                self.done = True
                left = self._left
            if not left:
                with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                    self._loop.call_soon_threadsafe(self.end)
                return
        if self.error is None and self._given_up is not None:
            self._given_up(self.result)  # type: ignore[arg-type]

    def end(self) -> None:
        """On the loop."""
        if not self.ended.done():
            self.ended.set_result(None)

    def leave(self) -> bool:
        """Nobody waits any more. Whether it is done already, so that somebody must `run` it once more."""
        with self._lock:
            self._left = True
            return self.done


class Threads:
    """`count` threads, started when there is something to do. They end with `close`, or with the process."""

    def __init__(self, count: int) -> None:
        self._jobs: SimpleQueue[Call[Any] | None] = SimpleQueue()
        self._count, self._started, self._closed = count, 0, False

    def submit(self, call: Call[Any]) -> None:
        """From the loop's thread. RuntimeError after `close`."""
        if self._closed:
            raise RuntimeError("the threads have ended")
        if self._started < self._count:
            self._started += 1
            threading.Thread(target=self._work, name=f"oml-fast-permission-{self._started}", daemon=True).start()
        self._jobs.put(call)

    def close(self) -> None:
        """What is waiting is done first."""
        self._closed = True
        for _ in range(self._started):
            self._jobs.put(None)

    def _work(self) -> None:
        while (call := self._jobs.get()) is not None:
            call.run()
            del call  # or it would live until the next one comes
