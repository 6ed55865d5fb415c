"""Checking permission tokens.

Order of the checks; the first that fails is the reason:
1. the owner's list of keys is here, is the owner's, is not older than one seen before, and has not expired
   (KeyListError otherwise: nothing is permitted);
2. the token's form, header, algorithm, type, key and signature (`jws.read`);
3. its claims, each one (`permission.permission_from_claims`);
4. the issuer is the list's; the key was to sign at the time of issue, and is not revoked; nor is the permission;
5. issued and valid by now, and not expired, with 30 seconds of skew each;
6. its life is not longer than this checker allows;
7. it names the model that is asked;
8. path and body are those that it names;
9. last, in one transaction of the store: the nonce of a single-use permission is spent, or the quota of a session
   taken.

A session's token is kept, by the SHA-256 of its whole text, once its signature held: steps 2 and 3 are not repeated.
Everything else is, for each request. A server that has the token before the body checks in two parts, `identify` and
`take`; the second repeats what may have changed in between.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import overload

from ..errors import (
    BadSignature,
    ExpiredPermission,
    InvalidArgumentError,
    MalformedToken,
    NotYetValid,
    QuotaExceeded,
    ReplayedNonce,
    RevokedPermission,
    WrongModel,
    WrongRequest,
)
from .key_file import FixedKeys, KeySource
from .key_list import KeyList
from .leases import Leases
from .permission import MAX_LIFETIME, SKEW, Permission, Request
from .stores import MOST_ANSWER_BYTES, Amount, Earlier, Nonce, Store
from .token import read_token

RETRY_SECONDS = 10.0
SESSIONS = 4096
SECONDS_BETWEEN_CLEANUPS = 60.0
_REQUEST = Request()


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that is permitted. Report its end once, with `Checker.finish` or `Checker.abort`.

    earlier: None, or that this is a retry of a single-use permission: then nothing may be generated; answer with
    `earlier.answer`, or say that the first try is not done (state "started") or its answer is gone.
    reserved: what was taken of a session's quota; None where it has none.
    """

    permission: Permission
    earlier: Earlier | None = None
    reserved: Amount | None = None


class Checker:
    """Checks the permission tokens for the models of one server. Safe for threads; one for each process.

    keys: the owner's list (`KeyFile`, or `FixedKeys`). models: digests of the models that answer here. max_lifetime:
    seconds from issue to expiry. retry_seconds: how long the same single-use token with the same body is a retry.
    sessions: how many tokens are kept. Raises KeyListError at once where there is no list.
    """

    def __init__(
        self,
        keys: KeySource,
        models: str | Iterable[str],
        store: Store,
        *,
        max_lifetime: int = MAX_LIFETIME,
        retry_seconds: float = RETRY_SECONDS,
        sessions: int = SESSIONS,
        now: float | None = None,
    ) -> None:
        self._keys = keys
        self._models = frozenset([models] if isinstance(models, str) else models)
        self._store = store
        self._leases = Leases(store)
        self._max_lifetime = max_lifetime
        self._retry_seconds = retry_seconds
        self._most_sessions = sessions
        self._sessions: OrderedDict[bytes, Permission] = OrderedDict()
        self._lock = threading.Lock()
        self._cleaned = float("-inf")
        if not self._models:
            raise InvalidArgumentError("a checker needs the digest of at least one model.")
        keys.current(_clock(now))

    def admit(self, token: str, *, request: Request = _REQUEST, now: float | None = None) -> Admission:
        """Check a token for a request, and take what the request may use. PermissionDenied says why not.

        Asks the store and may read the list of keys, so it is not for an event loop: `AsyncChecker` is.
        PermissionUnavailableError: nothing can be told, and nothing is permitted.
        """
        now = _clock(now)
        keys = self._keys.current(now)
        return self._take(self._read(token, keys), request, keys, now)

    def admit_at_once(self, token: str, *, request: Request = _REQUEST, now: float | None = None) -> Admission | None:
        """As `admit` for a session that is known, where nothing must be waited for; else None."""
        now = _clock(now)
        keys = self._keys.recent(now)
        permission = self._sessions.get(_digest(token)) if keys is not None else None
        if keys is None or permission is None:
            return None
        return self._take(permission, request, keys, now, wait=False)

    def identify(self, token: str, *, path: str | None = None, now: float | None = None) -> Permission:
        """All checks that need no body: steps 1 to 7, and the path. Nothing is spent or taken; `take` follows."""
        now = _clock(now)
        return self._identify(token, path, self._keys.current(now), now)

    def identify_at_once(self, token: str, *, path: str | None = None, now: float | None = None) -> Permission | None:
        """As `identify` where no file must be read; None where one must. Never waits."""
        now = _clock(now)
        keys = self._keys.recent(now)
        return None if keys is None else self._identify(token, path, keys, now)

    def take(self, permission: Permission, *, request: Request = _REQUEST, now: float | None = None) -> Admission:
        """All checks of a permission that `identify` gave, however long ago, and what the request may use of it."""
        now = _clock(now)
        return self._take(permission, request, self._keys.current(now), now)

    def take_at_once(
        self, permission: Permission, *, request: Request = _REQUEST, now: float | None = None
    ) -> Admission | None:
        """As `take` where neither the store nor a file must be waited for; None where they must. Never waits."""
        now = _clock(now)
        keys = self._keys.recent(now)
        return None if keys is None else self._take(permission, request, keys, now, wait=False)

    def check(self, token: str, *, request: Request = _REQUEST, now: float | None = None) -> Permission:
        """As `admit`, for one who has no first answer to repeat: a retry is a replay. What is reserved stays taken."""
        admission = self.admit(token, request=request, now=now)
        if admission.earlier is not None:
            raise ReplayedNonce("its nonce is spent.")
        return admission.permission

    def look(self, token: str, *, request: Request = _REQUEST, now: float | None = None) -> Permission:
        """As `check`, but nothing is spent or taken: would it be permitted now?"""
        now = _clock(now)
        keys = self._keys.current(now)
        permission = read_token(token, keys.verification_key)
        self._require_all(permission, keys, request, now)
        need = _need(permission, request)
        if permission.use == "once" or need is not None:
            usage = self._store.usage(Nonce.of(permission))
            if permission.use == "once" and usage.spent:
                raise ReplayedNonce("its nonce is spent.")
            if need is not None:
                _require_within(permission, usage.taken + need)
        return permission

    def finish(
        self, admission: Admission, output_tokens: int = 0, answer: bytes | None = None, *, now: float | None = None
    ) -> None:
        """The request has its end: `output_tokens` were generated. The rest of what was reserved is free again.

        answer: of a single-use permission, to be repeated to a retry; one beyond 1 MiB is not kept. Asks the store for
        single-use permissions only.
        """
        now = _clock(now)
        permission = admission.permission
        if admission.reserved is not None:
            unused = Amount(0, admission.reserved.output_tokens - output_tokens)
            if permission.limits.output_tokens is not None:
                self._leases.put(permission, unused, now)
        elif permission.use == "once" and admission.earlier is None:
            kept = None if answer is None or len(answer) > MOST_ANSWER_BYTES else answer
            self._store.finish(Nonce.of(permission), kept, now)

    def abort(self, admission: Admission, *, now: float | None = None) -> None:
        """Nothing was generated: what was reserved is free again. A nonce stays spent."""
        now = _clock(now)
        if admission.reserved is not None:
            self._leases.put(admission.permission, admission.reserved, now)
        else:
            self.finish(admission, now=now)

    def tend(self, *, now: float | None = None) -> None:
        """Give idle leases back and, once a minute, clean the store up. Call it every second or so, off the loop."""
        now = _clock(now)
        self._leases.tend(now)
        if not 0 <= now - self._cleaned < SECONDS_BETWEEN_CLEANUPS:
            self._store.clean_up(now, now - self._retry_seconds)
            self._cleaned = now

    def close(self, *, now: float | None = None) -> None:
        """Give all leases back. The store stays open: it is its maker's."""
        self._leases.close(_clock(now))

    def _read(self, token: str, keys: KeyList) -> Permission:
        """Steps 2 and 3; a session's token is kept, and found again."""
        digest = _digest(token)
        permission = self._sessions.get(digest)
        if permission is None:
            permission = read_token(token, keys.verification_key)
            if permission.use == "session":
                self._keep(digest, permission)
        return permission

    def _identify(self, token: str, path: str | None, keys: KeyList, now: float) -> Permission:
        permission = self._read(token, keys)
        self._require_valid(permission, keys, now)
        if self._models.isdisjoint(permission.models):
            raise WrongModel("it is for another model.")
        _require_path(permission, path)
        return permission

    @overload
    def _take(self, permission: Permission, request: Request, keys: KeyList, now: float) -> Admission: ...

    @overload
    def _take(
        self, permission: Permission, request: Request, keys: KeyList, now: float, *, wait: bool
    ) -> Admission | None: ...

    def _take(
        self, permission: Permission, request: Request, keys: KeyList, now: float, *, wait: bool = True
    ) -> Admission | None:
        """Steps 4 to 9; None where that would wait for the store, and must not."""
        if permission.use == "once" and not wait and self._store.waits:
            return None
        self._require_all(permission, keys, request, now)
        if permission.use == "once":
            return self._spend(permission, request, now)
        reserved = _need(permission, request)
        if reserved is not None and not self._leases.take(permission, reserved, now):
            if not wait:
                return None
            self._leases.lease(permission, reserved, now)
        return Admission(permission, None, reserved)

    def _require_all(self, permission: Permission, keys: KeyList, request: Request, now: float) -> None:
        """Steps 4 to 8."""
        self._require_valid(permission, keys, now)
        self._require_model(permission, request.model)
        _require_path(permission, request.path)
        if permission.limits.body_sha256 not in (None, request.body_sha256):
            raise WrongRequest("it is for another body.")

    def _require_valid(self, permission: Permission, keys: KeyList, now: float) -> None:
        """Steps 4 to 6."""
        _require_standing(permission, keys)
        _require_time(permission, now)
        if permission.expires_at - permission.issued_at > self._max_lifetime:
            raise MalformedToken(f"it lives longer than the {self._max_lifetime} seconds that are allowed here.")

    def _require_model(self, permission: Permission, model: str | None) -> None:
        if model is None:
            if len(self._models) > 1:
                raise InvalidArgumentError(f"this checker has {len(self._models)} models: say which one is asked.")
            (model,) = self._models
        if model not in self._models or model not in permission.models:
            raise WrongModel("it is for another model.")

    def _spend(self, permission: Permission, request: Request, now: float) -> Admission:
        _require_within(permission, _need(permission, request) or Amount())
        earlier = self._store.spend(Nonce.of(permission), request.body_sha256, now, self._retry_seconds)
        return Admission(permission, earlier)

    def _keep(self, digest: bytes, permission: Permission) -> None:
        with self._lock:
            self._sessions[digest] = permission
            while len(self._sessions) > self._most_sessions:
                self._sessions.popitem(last=False)


def check(
    token: str,
    *,
    keys: KeySource | KeyList,
    models: str | Iterable[str],
    store: Store,
    request: Request = _REQUEST,
    now: float | None = None,
) -> Permission:
    """Check one permission token and take what the request may use: `Checker.check`. Servers keep a `Checker`.

    keys: the owner's list, or where it is. models: digests of the models that answer. store: where nonces and quotas
    are kept. now: seconds since 1970. Raises PermissionDenied, whose sub-classes and `code` say why, and
    PermissionUnavailableError where nothing can be told.
    """
    source = FixedKeys(keys) if isinstance(keys, KeyList) else keys
    return Checker(source, models, store, now=now).check(token, request=request, now=now)


def _clock(now: float | None) -> float:
    return time.time() if now is None else now


def _digest(token: str) -> bytes:
    if not isinstance(token, str):
        raise MalformedToken("it is no text.")
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _require_standing(permission: Permission, keys: KeyList) -> None:
    key = keys.keys.get(permission.kid)
    if key is None:
        raise BadSignature("its key is not in the owner's list.")
    if permission.issuer != keys.issuer:
        raise BadSignature("its issuer is not the owner of the list of keys.")
    if not key.signed_at(permission.issued_at):
        raise BadSignature("its key was not to sign at the time of issue.")
    if key.revoked:
        raise RevokedPermission("the key that signed it is revoked.")
    if permission.nonce in keys.revoked:
        raise RevokedPermission("it is revoked.")


def _require_time(permission: Permission, now: float) -> None:
    if not max(permission.issued_at, permission.not_before) <= now + SKEW:  # so that NaN is refused, too
        raise NotYetValid("its time has not come: check this machine's clock, or wait.")
    if not now < permission.expires_at + SKEW:
        raise ExpiredPermission("it has expired: ask for a new one.")


def _require_path(permission: Permission, path: str | None) -> None:
    if permission.limits.paths is not None and path not in permission.limits.paths:
        raise WrongRequest("it is not for this path.")


def _need(permission: Permission, request: Request) -> Amount | None:
    """What the request may use of the limits; None where there are none."""
    limits = permission.limits
    if not limits.counted:
        return None
    if limits.output_tokens is not None and request.output_tokens is None:
        raise QuotaExceeded("its output is limited, and nothing bounds that of the request: give max_tokens.")
    requests = 0 if limits.requests is None else request.requests
    return Amount(requests, 0 if limits.output_tokens is None else request.output_tokens or 0)


def _require_within(permission: Permission, needed: Amount) -> None:
    limits = permission.limits
    if limits.requests is not None and needed.requests > limits.requests:
        raise QuotaExceeded(f"the request needs more than the {limits.requests} requests of the permission.")
    if limits.output_tokens is not None and needed.output_tokens > limits.output_tokens:
        raise QuotaExceeded(f"the request needs more than the {limits.output_tokens} output tokens of the permission.")
