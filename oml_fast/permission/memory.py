"""A store in memory, for one process: trials, tests, one worker. It refuses what was issued before it was made."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from ..errors import KeyListError, ReplayedNonce
from .permission import SKEW, Limits
from .stores import Amount, Earlier, Nonce, Usage, granted, older_list


@dataclass(slots=True)
class _Spent:
    body: str | None
    at: float
    forget_at: int
    finished: bool = False
    answer: bytes | None = None


class MemoryStore:
    """See `stores.Store`. `now` is when it begins; versions of key lists are forgotten with it, too."""

    name = "memory"
    waits = False

    def __init__(self, now: float | None = None) -> None:
        self._began = (time.time() if now is None else now) + SKEW
        self._forgotten = 0.0
        self._spent: dict[tuple[str, str], _Spent] = {}
        self._taken: dict[tuple[str, str], tuple[Amount, int]] = {}
        self._lists: dict[str, tuple[int, str]] = {}
        self._lock = threading.Lock()

    def spend(self, nonce: Nonce, body: str | None, now: float, retry_seconds: float) -> Earlier | None:
        key = (nonce.issuer, nonce.nonce)
        with self._lock:
            nonce.require_known(self._began, self._forgotten)
            found = self._spent.get(key)
            if found is None:
                self._spent[key] = _Spent(body, now, nonce.forget_at)
                return None
            if body is None or body != found.body or not 0 <= now - found.at <= retry_seconds:
                raise ReplayedNonce("its nonce is spent.")
            return Earlier("finished" if found.finished else "started", found.answer)

    def finish(self, nonce: Nonce, answer: bytes | None, now: float) -> None:
        with self._lock:
            found = self._spent.get((nonce.issuer, nonce.nonce))
            if found is not None:
                found.finished, found.answer = True, answer

    def lease(self, nonce: Nonce, limits: Limits, need: Amount, now: float) -> Amount:
        key = (nonce.issuer, nonce.nonce)
        with self._lock:
            nonce.require_known(self._began, self._forgotten)
            taken, _ = self._taken.get(key, (Amount(), 0))
            amount = granted(limits, taken, need)
            self._taken[key] = (taken + amount, nonce.forget_at)
            return amount

    def give_back(self, nonce: Nonce, amount: Amount) -> None:
        key = (nonce.issuer, nonce.nonce)
        with self._lock:
            if key in self._taken:
                taken, forget_at = self._taken[key]
                self._taken[key] = ((taken - amount).positive(), forget_at)

    def usage(self, nonce: Nonce) -> Usage:
        key = (nonce.issuer, nonce.nonce)
        with self._lock:
            nonce.require_known(self._began, self._forgotten)
            return Usage(key in self._spent, self._taken.get(key, (Amount(), 0))[0])

    def remember_list(self, owner: str, version: int, digest: str) -> None:
        with self._lock:
            seen, known = self._lists.get(owner, (0, ""))
            if version < seen or (version == seen and digest != known):
                raise KeyListError(older_list(version, seen))
            self._lists[owner] = (version, digest)

    def clean_up(self, now: float, answers_before: float) -> None:
        with self._lock:
            times = [each.forget_at for each in self._spent.values()] + [each[1] for each in self._taken.values()]
            self._forgotten = max([self._forgotten, *(time for time in times if time <= now)])
            self._spent = {key: each for key, each in self._spent.items() if each.forget_at > now}
            self._taken = {key: each for key, each in self._taken.items() if each[1] > now}
            for each in self._spent.values():
                if each.at < answers_before:
                    each.answer = None

    def close(self) -> None:
        """Nothing to close."""
