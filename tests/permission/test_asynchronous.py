"""On an event loop: nothing waits there, what is given up is given back."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from granting import BODY, MODEL, NOW, OWNER, checker, key_list, token

from oml_fast.errors import KeyListError, QuotaExceeded, ReplayedNonce, StoreUnavailableError
from oml_fast.permission import (
    Amount,
    AsyncChecker,
    Checker,
    Earlier,
    KeyFile,
    Limits,
    MemoryStore,
    Nonce,
    Request,
    SqliteStore,
    Usage,
)


class SlowStore(MemoryStore):
    """Waits in every call that a request makes, and notes in which thread."""

    def __init__(self, seconds: float) -> None:
        super().__init__(now=NOW - 500)
        self.seconds = seconds
        self.threads: set[int] = set()

    def _wait(self) -> None:
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)

    def spend(self, nonce: Nonce, body: str | None, now: float, retry_seconds: float) -> Earlier | None:
        self._wait()
        return super().spend(nonce, body, now, retry_seconds)

    def lease(self, nonce: Nonce, limits: Limits, need: Amount, now: float) -> Amount:
        self._wait()
        return super().lease(nonce, limits, need, now)

    def finish(self, nonce: Nonce, answer: bytes | None, now: float) -> None:
        self._wait()
        super().finish(nonce, answer, now)

    def give_back(self, nonce: Nonce, amount: Amount) -> None:
        self._wait()
        super().give_back(nonce, amount)


def run(use: Callable[[], Awaitable[None]]) -> None:
    async def timed() -> None:
        await asyncio.wait_for(use(), 20)

    asyncio.run(timed())


def used(store: MemoryStore) -> Usage:
    (key,) = store._taken
    return store.usage(Nonce(*key, NOW, NOW + 10**9))


def test_the_loop_goes_on_while_the_store_is_slow() -> None:
    store = SlowStore(0.1)

    async def use() -> None:
        asynchronous, longest, over = AsyncChecker(checker(store)), 0.0, False

        async def beat() -> None:
            nonlocal longest
            while not over:
                before = time.monotonic()
                await asyncio.sleep(0.001)
                longest = max(longest, time.monotonic() - before)

        beating = asyncio.create_task(beat())
        text = token(limits=Limits(requests=100))
        admission = await asynchronous.admit(text, now=NOW)
        await asynchronous.abort(admission, now=NOW)
        once = await asynchronous.admit(token(use="once"), now=NOW)
        await asynchronous.finish(once, 1, b"answer", now=NOW)
        await asynchronous.close()
        over = True
        await beating
        assert longest < 0.08
        assert threading.get_ident() not in store.threads
        assert len(store.threads) == 1

    run(use)


def test_a_kept_session_needs_no_thread() -> None:
    store = SlowStore(0.0)

    async def use() -> None:
        asynchronous = AsyncChecker(checker(store))
        text = token(limits=Limits(requests=1000))
        await asynchronous.admit(text, now=NOW)
        asynchronous._threads.close()
        admissions = [await asynchronous.admit(text, now=NOW) for _ in range(20)]
        for admission in admissions[:10]:
            await asynchronous.finish(admission, now=NOW)
        for admission in admissions[10:]:
            await asynchronous.abort(admission, now=NOW)

    run(use)


def test_refusals_come_through(tmp_path: Path) -> None:
    path, store = tmp_path / "keys", SqliteStore(tmp_path / "store", now=NOW - 500)
    path.write_text(key_list().signed(OWNER, NOW))

    async def use() -> None:
        asynchronous = AsyncChecker(Checker(KeyFile(path, OWNER.verification_key, store), MODEL, store, now=NOW))
        text, request = token(use="once"), Request(body_sha256=BODY)
        first = await asynchronous.admit(text, request=request, now=NOW)
        assert (await asynchronous.admit(text, request=request, now=NOW)).earlier == Earlier("started")
        await asynchronous.finish(first, 1, b"answer", now=NOW)
        assert (await asynchronous.admit(text, request=request, now=NOW)).earlier == Earlier("finished", b"answer")
        with pytest.raises(ReplayedNonce):
            await asynchronous.admit(text, now=NOW)
        with pytest.raises(QuotaExceeded):
            await asynchronous.admit(token(limits=Limits(requests=1)), request=Request(requests=2), now=NOW)
        racing = [asynchronous.admit(token(use="once", nonce="z" * 22), now=NOW) for _ in range(20)]
        done = await asyncio.gather(*racing, return_exceptions=True)
        assert [type(each) for each in done].count(ReplayedNonce) == 19
        path.unlink()
        await asyncio.sleep(0.6)
        with pytest.raises(KeyListError):
            await asynchronous.admit(text, now=NOW)
        store.close()
        await asynchronous.close()

    run(use)


def test_who_waits_too_long_is_told_and_what_was_taken_goes_back() -> None:
    store = SlowStore(0.15)

    async def use() -> None:
        asynchronous = AsyncChecker(checker(store), timeout=0.05)
        with pytest.raises(StoreUnavailableError, match=r"within 0\.05 seconds"):
            await asynchronous.admit(token(limits=Limits(requests=100)), now=NOW)
        await asyncio.sleep(0.4)
        store.seconds = 0.0
        await asynchronous.close()
        assert used(store).taken == Amount()

    run(use)


def test_who_goes_away_while_waiting_takes_nothing() -> None:
    store = SlowStore(0.1)

    async def use() -> None:
        asynchronous = AsyncChecker(checker(store))
        waiting = asyncio.create_task(asynchronous.admit(token(limits=Limits(requests=100)), now=NOW))
        await asyncio.sleep(0.03)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0.2)
        await asynchronous.close()
        assert used(store).taken == Amount()

    run(use)


def test_an_end_is_recorded_even_if_nobody_waits_for_it() -> None:
    store = SlowStore(0.05)

    async def use() -> None:
        asynchronous, text, request = AsyncChecker(checker(store)), token(use="once"), Request(body_sha256=BODY)
        admission = await asynchronous.admit(text, request=request, now=NOW)
        ending = asyncio.create_task(asynchronous.finish(admission, 1, b"answer", now=NOW))
        await asyncio.sleep(0.01)
        ending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ending
        await asyncio.sleep(0.2)
        assert (await asynchronous.admit(text, request=request, now=NOW)).earlier == Earlier("finished", b"answer")
        await asynchronous.tend()
        await asynchronous.close()

    run(use)


def test_the_ends_of_sessions_are_settled() -> None:
    store = SlowStore(0.0)

    async def use() -> None:
        asynchronous, text = AsyncChecker(checker(store)), token(limits=Limits(100, 1000))
        first = await asynchronous.admit(text, request=Request(output_tokens=50), now=NOW)
        second = await asynchronous.admit(text, request=Request(output_tokens=50), now=NOW)
        await asynchronous.finish(first, 7, now=NOW)
        await asynchronous.finish(await asynchronous.admit(text, request=Request(output_tokens=50), now=NOW), now=NOW)
        await asynchronous.abort(second, now=NOW)
        await asynchronous.tend()
        assert used(store).taken == Amount(2, 7)  # what was idle for years by now went back
        await asynchronous.close()
        with pytest.raises(RuntimeError):
            await asynchronous.tend()

    run(use)


def test_the_ends_of_single_uses_are_told() -> None:
    store = SlowStore(0.0)

    async def use() -> None:
        asynchronous, request = AsyncChecker(checker(store)), Request(body_sha256=BODY)
        for end in (asynchronous.finish, asynchronous.abort):
            text = token(use="once")
            before = len(store.threads)
            admission = await asynchronous.admit(text, request=request, now=NOW)
            await end(admission, now=NOW)
            assert (await asynchronous.admit(text, request=request, now=NOW)).earlier == Earlier("finished")
            assert threading.get_ident() not in store.threads
            assert len(store.threads) == max(1, before)
        await asynchronous.close()

    run(use)


def test_both_parts_on_the_loop(tmp_path: Path) -> None:
    path, times = tmp_path / "keys", [0.0]
    path.write_text(key_list().signed(OWNER, NOW))
    store = SqliteStore(tmp_path / "store", now=NOW - 500)
    keys = KeyFile(path, OWNER.verification_key, store, monotonic=lambda: times[0])

    async def use() -> None:
        asynchronous = AsyncChecker(Checker(keys, MODEL, store, now=NOW))
        for given in ({"use": "once"}, {"limits": Limits(requests=50)}, {}):
            text, request = token(**given), Request(body_sha256=BODY)
            permission = await asynchronous.identify(text, now=NOW)
            assert permission.nonce
            times[0] += 1.0  # the list must be looked at, which the loop does not do
            assert await asynchronous.identify(text, path="/v1/a", now=NOW) == permission
            times[0] += 1.0
            admission = await asynchronous.take(permission, request=request, now=NOW)
            assert admission.permission == permission
            again = await asynchronous.take(permission, request=request, now=NOW)
            assert (again.earlier is None) == (permission.use == "session")
            await asynchronous.finish(admission, now=NOW)
        asynchronous._threads.close()
        assert await asynchronous.identify(token(), now=NOW)  # a new token needs no thread, nor does a session
        assert await asynchronous.take(permission, now=NOW)
        with pytest.raises(RuntimeError):
            await asynchronous.take(await asynchronous.identify(token(use="once"), now=NOW), now=NOW)

    run(use)
    store.close()


def test_what_is_taken_for_nobody_goes_back() -> None:
    store = SlowStore(0.15)

    async def use() -> None:
        asynchronous = AsyncChecker(checker(store), timeout=0.05)
        permission = await asynchronous.identify(token(limits=Limits(requests=100)), now=NOW)
        with pytest.raises(StoreUnavailableError):
            await asynchronous.take(permission, now=NOW)
        await asyncio.sleep(0.4)
        store.seconds = 0.0
        await asynchronous.close()
        assert used(store).taken == Amount()

    run(use)


def test_a_failure_that_nobody_waits_for_is_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    class FailingStore(SlowStore):
        def lease(self, nonce: Nonce, limits: Limits, need: Amount, now: float) -> Amount:
            self._wait()
            raise StoreUnavailableError("gone.")

    async def use() -> None:
        asynchronous = AsyncChecker(checker(FailingStore(0.1)), timeout=0.03)
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match="within"):
                await asynchronous.admit(token(limits=Limits(requests=100)), now=NOW)
        await asyncio.sleep(0.3)
        gc.collect()
        await asyncio.sleep(0)
        await asynchronous.close()

    run(use)
    gc.collect()
    assert caplog.records == []


def test_a_call_that_outlives_its_loop_is_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    store = SlowStore(0.1)
    asynchronous = AsyncChecker(checker(store), timeout=0.03)

    async def use() -> None:
        with pytest.raises(StoreUnavailableError):
            await asynchronous.admit(token(limits=Limits(requests=100)), now=NOW)

    run(use)
    asynchronous._threads.close()
    time.sleep(0.2)
    assert len(store.threads) == 1
    assert caplog.records == []
