"""Checking on an event loop: what needs the store or a file goes to threads of its own, the rest is done at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar, cast

from ..errors import PermissionUnavailableError, StoreUnavailableError
from .checking import Admission, Checker
from .permission import Permission, Request
from .threads import Call, Threads

SECONDS_TO_WAIT = 5.0
_REQUEST = Request()
T = TypeVar("T")


class AsyncChecker:
    """A `Checker` on an event loop. threads: 1 suits a file, which has one writer; a server takes more.

    Whoever waits longer than `timeout` seconds gets StoreUnavailableError, and what was taken for them is given back.
    """

    def __init__(self, checker: Checker, *, threads: int = 1, timeout: float = SECONDS_TO_WAIT) -> None:
        self._checker = checker
        self._threads = Threads(threads)
        self._timeout = timeout

    async def admit(self, token: str, *, request: Request = _REQUEST, now: float | None = None) -> Admission:
        """`Checker.admit`, which never blocks the loop."""
        ready = self._checker.admit_at_once(token, request=request, now=now)
        if ready is not None:
            return ready
        return await self._run(lambda: self._checker.admit(token, request=request, now=now), self._given_up)

    async def identify(self, token: str, *, path: str | None = None, now: float | None = None) -> Permission:
        """`Checker.identify`, which never blocks the loop; a new token's signature is checked on it (0.1 ms)."""
        ready = self._checker.identify_at_once(token, path=path, now=now)
        if ready is not None:
            return ready
        return await self._run(lambda: self._checker.identify(token, path=path, now=now))

    async def take(self, permission: Permission, *, request: Request = _REQUEST, now: float | None = None) -> Admission:
        """`Checker.take`, which never blocks the loop."""
        ready = self._checker.take_at_once(permission, request=request, now=now)
        if ready is not None:
            return ready
        return await self._run(lambda: self._checker.take(permission, request=request, now=now), self._given_up)

    async def finish(
        self, admission: Admission, output_tokens: int = 0, answer: bytes | None = None, *, now: float | None = None
    ) -> None:
        """`Checker.finish`. It happens even if whoever awaits it is cancelled."""
        if admission.permission.use == "session":
            self._checker.finish(admission, output_tokens, now=now)
        else:
            await self._run(lambda: self._checker.finish(admission, output_tokens, answer, now=now))

    async def abort(self, admission: Admission, *, now: float | None = None) -> None:
        """`Checker.abort`. It happens even if whoever awaits it is cancelled."""
        if admission.permission.use == "session":
            self._checker.abort(admission, now=now)
        else:
            await self._run(lambda: self._checker.abort(admission, now=now))

    async def tend(self) -> None:
        """`Checker.tend`."""
        await self._run(self._checker.tend)

    async def close(self) -> None:
        """Give all leases back, and end the threads."""
        try:
            await self._run(self._checker.close)
        finally:
            self._threads.close()

    async def _run(self, work: Callable[[], T], given_up: Callable[[T], None] | None = None) -> T:
        """Run in a thread. Nobody waits for it any more: it runs to its end, and `given_up` gets what it returns."""
        loop = asyncio.get_running_loop()
        call = Call(work, loop, loop.create_future(), given_up)
        self._threads.submit(call)
        timer = loop.call_later(self._timeout, call.end)
        try:
            await call.ended
        except asyncio.CancelledError:
            self._leave(call)
            raise
        finally:
            timer.cancel()
        if not call.done:
            self._leave(call)
            raise StoreUnavailableError(f"the store did not answer within {self._timeout:g} seconds.")
        if call.error is None:
            return cast(T, call.result)
        try:
            raise call.error
        finally:
            del call  # it holds the error, whose traceback holds this frame

    def _leave(self, call: Call[T]) -> None:
        """Nobody waits any more: what it returned, or will return, is given up, in a thread."""
        if call.leave():
            with contextlib.suppress(RuntimeError):  # the threads have ended, and the leases were given back
                self._threads.submit(call)

    def _given_up(self, admission: Admission) -> None:
        with contextlib.suppress(PermissionUnavailableError):
            self._checker.abort(admission)
