"""What a store of nonces and quotas must do, and the rules that all of them share.

A store answers for every permission token of the models that it serves, so all processes that serve them share one. It
knows of a nonce only since it began: a token issued before is refused (`Nonce.require_known`), and so is one whose
nonce it may have forgotten. So no clock, restart or clean-up lets a token through that was let through before.

Each method is one transaction. PermissionDenied is a refusal; StoreUnavailableError means that nothing is known, and
that nothing was permitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..errors import QuotaExceeded, ReplayedNonce
from .permission import MAX_LIFETIME, SKEW, Limits, Permission

LEASE_SHARE = 8  # a lease is at most this part of what is left, and
LEASE_REQUESTS = 64  # at most what this many requests like the present one need
MOST_ANSWER_BYTES = 1 << 20
FORGET_AT_ONCE = 1000  # rows of one clean-up, so that no transaction is long


@dataclass(frozen=True, slots=True)
class Nonce:
    """Names a permission token in a store: `nonce` among those of its `issuer`.

    forget_at: when nobody can present it any more, whatever clock: expiry, the skew on both sides, and the longest
    lifetime as margin.
    """

    issuer: str
    nonce: str
    issued_at: int
    forget_at: int

    @classmethod
    def of(cls, permission: Permission) -> Nonce:
        forget_at = permission.expires_at + 2 * SKEW + MAX_LIFETIME
        return cls(permission.issuer, permission.nonce, permission.issued_at, forget_at)

    def require_known(self, began: float, forgotten: float) -> None:
        """ReplayedNonce where the store cannot know whether it is spent.

        began: when the store began, with the skew, for the issuer's clock may be ahead. forgotten: up to which
        `forget_at` it has ever cleaned up.
        """
        if self.issued_at <= began:
            raise ReplayedNonce(
                "it was issued before this server began to keep nonces, or in the half minute after: ask for a new one."
            )
        if self.forget_at <= forgotten:
            raise ReplayedNonce("its nonce may have been forgotten: ask for a new one.")


@dataclass(frozen=True, slots=True)
class Amount:
    """Of a quota."""

    requests: int = 0
    output_tokens: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.requests + other.requests, self.output_tokens + other.output_tokens)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.requests - other.requests, self.output_tokens - other.output_tokens)

    def positive(self) -> Amount:
        return Amount(max(0, self.requests), max(0, self.output_tokens))


@dataclass(frozen=True, slots=True)
class Earlier:
    """A single-use permission was spent a moment ago for the same body: this is a retry, not a replay.

    state: "started" or "finished". answer: what the first try kept for retries, if anything.
    """

    state: str
    answer: bytes | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a store knows of a permission: whether its nonce is spent, and what is taken of its quota."""

    spent: bool
    taken: Amount


class Store(Protocol):
    """Nonces, quotas and versions of key lists, shared by all who check the same permissions."""

    @property
    def name(self) -> str:
        """What it is and where, without a password."""
        ...

    @property
    def waits(self) -> bool:
        """Whether `spend` and `finish` wait for a disk, a network or another process."""
        ...

    def spend(self, nonce: Nonce, body: str | None, now: float, retry_seconds: float) -> Earlier | None:
        """Spend a nonce: None for exactly one caller, ever. `body` is the digest of the request's body.

        Earlier where it was spent at most `retry_seconds` before for the same body; ReplayedNonce otherwise.
        """
        ...

    def finish(self, nonce: Nonce, answer: bytes | None, now: float) -> None:
        """The request of a spent nonce has its end; `answer` (at most 1 MiB) is kept for retries until clean-up."""
        ...

    def lease(self, nonce: Nonce, limits: Limits, need: Amount, now: float) -> Amount:
        """Take at least `need` of a quota, and a block beyond it where much is left. QuotaExceeded: nothing taken."""
        ...

    def give_back(self, nonce: Nonce, amount: Amount) -> None:
        """Put what was leased and not used back; what is negative was used beyond the lease, and is taken."""
        ...

    def usage(self, nonce: Nonce) -> Usage:
        """Look, and change nothing. Raises ReplayedNonce as `spend` does where the store cannot know."""
        ...

    def remember_list(self, owner: str, version: int, digest: str) -> None:
        """Remember a list of keys. KeyListError where a higher version, or another list of this one, was seen."""
        ...

    def clean_up(self, now: float, answers_before: float) -> None:
        """Forget some nonces and quotas that nobody can present any more, and answers kept before a time."""
        ...

    def close(self) -> None: ...


def granted(limits: Limits, taken: Amount, need: Amount) -> Amount:
    """How much a lease takes where `taken` is taken already. QuotaExceeded where less than `need` is left."""
    return Amount(
        _granted("requests", limits.requests, taken.requests, need.requests),
        _granted("output tokens", limits.output_tokens, taken.output_tokens, need.output_tokens),
    )


def older_list(version: int, seen: int) -> str:
    """What is wrong with a list that is not the newest."""
    if version < seen:
        return f"the list of keys has version {version}, and version {seen} was seen before: get the newest."
    return f"two different lists of keys have version {version}: publish the next version."


def _granted(what: str, limit: int | None, taken: int, need: int) -> int:
    if limit is None:
        return 0
    left = limit - taken
    if left < need:
        raise QuotaExceeded(f"the request needs {need} {what}, and {max(0, left)} of {limit} are left to lease.")
    return max(need, min(LEASE_REQUESTS * need, left // LEASE_SHARE))
