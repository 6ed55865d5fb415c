"""What this process has leased of each session's quota, so that most requests need no store.

A request takes what it may need from the pool of its permission, and puts back what it did not use. A pool with too
little leases the rest, and a block beyond, from the store; one that was idle for some seconds gives all of it back. So
the sum of what is used, in all processes, never passes the limit; a process that is killed loses its pools, at most an
eighth of what was left.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from ..errors import PermissionUnavailableError
from .permission import Permission
from .stores import Amount, Nonce, Store

IDLE_SECONDS = 2.0


@dataclass(slots=True)
class _Pool:
    """`requests` and `output_tokens` may be negative by what a request used beyond its own most."""

    requests: int
    output_tokens: int
    used_at: float


class Leases:
    """All pools of one process. Safe for threads; only `lease`, `tend` and `close` ask the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pools: dict[Nonce, _Pool] = {}
        self._lock = threading.Lock()

    def take(self, permission: Permission, need: Amount, now: float) -> bool:
        """Take from the pool alone; whether it had enough."""
        limits = permission.limits
        with self._lock:
            pool = self._pools.get(Nonce.of(permission))
            if (
                pool is None
                or (limits.requests is not None and pool.requests < need.requests)
                or (limits.output_tokens is not None and pool.output_tokens < need.output_tokens)
            ):
                return False
            pool.requests -= need.requests
            pool.output_tokens -= need.output_tokens
            pool.used_at = now
            return True

    def lease(self, permission: Permission, need: Amount, now: float) -> None:
        """Take from the pool and, for what it lacks, from the store. QuotaExceeded: nothing is taken."""
        nonce = Nonce.of(permission)
        had = self._empty(nonce)
        lacking = (need - had).positive()
        try:
            got = self._store.lease(nonce, permission.limits, lacking, now)
        except BaseException:
            self.put(permission, had, now)
            raise
        self.put(permission, had + got - need, now)

    def put(self, permission: Permission, amount: Amount, now: float) -> None:
        """Put into the pool what was taken and not used."""
        with self._lock:
            pool = self._pools.setdefault(Nonce.of(permission), _Pool(0, 0, now))
            pool.requests += amount.requests
            pool.output_tokens += amount.output_tokens
            pool.used_at = now

    def tend(self, now: float, idle: float = IDLE_SECONDS) -> None:
        """Give idle pools back to the store, so that other processes can lease them."""
        with self._lock:
            old = [nonce for nonce, pool in self._pools.items() if not 0 <= now - pool.used_at < idle]
        for nonce in old:
            amount = self._empty(nonce)
            if amount == Amount():
                continue
            try:
                self._store.give_back(nonce, amount)
            except PermissionUnavailableError:
                with self._lock:
                    pool = self._pools.setdefault(nonce, _Pool(0, 0, now))
                    pool.requests += amount.requests
                    pool.output_tokens += amount.output_tokens
                raise

    def close(self, now: float) -> None:
        """Give everything back."""
        self.tend(now, idle=0)

    def _empty(self, nonce: Nonce) -> Amount:
        with self._lock:
            pool = self._pools.pop(nonce, None)
            return Amount() if pool is None else Amount(pool.requests, pool.output_tokens)
