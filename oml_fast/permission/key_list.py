"""The verification keys that a server trusts: a list that the owner signs, with a version and an expiry.

A list is a signed text (`jws`) of the type `oml-permission-keys+jwt`, signed by the owner's own key, which is pinned at
every server. It holds `iss`, `version`, `iat`, `exp`, the `keys` that sign permissions and
the `revoked` nonces. A key signs from its `not_before` until its `not_after`: a permission counts by its time of issue,
so those issued before a key was retired hold until they expire. A key marked as revoked counts for nothing, at once.
Every change makes the next version; a server never goes back to an older one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from ..errors import InvalidArgumentError, KeyListError, MalformedToken, PermissionDenied
from ..signing import SigningKey, VerificationKey, canonical_json
from . import jws
from .permission import MAX_LIFETIME, SKEW, is_name, is_nonce, is_time

TYPE = "oml-permission-keys+jwt"
MOST_CHARACTERS = 4 * 2**20
MOST_KEYS = 64
DAYS = 30  # until a list expires
_FIELDS = {"iss", "version", "iat", "exp", "keys", "revoked"}
_KEY_FIELDS = {"key", "not_before", "not_after", "revoked"}


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A key that signs permissions, and from when until when (seconds; None: no end)."""

    key: VerificationKey
    not_before: int
    not_after: int | None = None
    revoked: bool = False

    def signed_at(self, time: int) -> bool:
        """Whether it was the key's turn to sign at that time, by a clock that may be behind the list's by the skew."""
        return self.not_before - SKEW <= time and (self.not_after is None or time <= self.not_after)

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.key.hex(),
            "not_before": self.not_before,
            "not_after": self.not_after,
            "revoked": self.revoked,
        }


@dataclass(frozen=True)
class KeyList:
    """One version of the list. `keys` by their kid; `revoked` has each nonce with the time of its revocation."""

    issuer: str
    version: int
    issued_at: int
    expires_at: int
    keys: Mapping[str, ListedKey] = field(default_factory=dict)
    revoked: Mapping[str, int] = field(default_factory=dict)

    def verification_key(self, kid: str) -> VerificationKey | None:
        found = self.keys.get(kid)
        return None if found is None else found.key

    def with_key(self, key: VerificationKey, now: float) -> Self:
        """With a key that signs from now on."""
        if key.kid in self.keys:
            raise InvalidArgumentError(f"the key {key.kid} is in the list already.")
        if len(self.keys) == MOST_KEYS:
            raise InvalidArgumentError(f"the list has {MOST_KEYS} keys, the most there may be: retire some.")
        return replace(self, keys={**self.keys, key.kid: ListedKey(key, int(now))})

    def retiring(self, kid: str, now: float) -> Self:
        """With a key that signs nothing from now on; what it has signed holds."""
        key = self._key(kid)
        end = int(now) if key.not_after is None else min(key.not_after, int(now))
        return replace(self, keys={**self.keys, kid: replace(key, not_after=max(end, key.not_before))})

    def revoking_key(self, kid: str, now: float) -> Self:
        """Without trust in a key: nothing that it signed holds any more."""
        retired = self.retiring(kid, now)
        return replace(retired, keys={**retired.keys, kid: replace(retired.keys[kid], revoked=True)})

    def revoking(self, nonce: str, now: float) -> Self:
        """With a permission revoked, by its nonce."""
        if not is_nonce(nonce):
            raise InvalidArgumentError("a nonce has 22 to 64 characters of base64url: give the token's own.")
        return replace(self, revoked={**self.revoked, nonce: self.revoked.get(nonce, int(now))})

    def signed(self, owner: SigningKey, now: float, days: float = DAYS) -> str:
        """The next version, signed. What no permission can refer to any more is left out.

        A revoked nonce, and a retired key, can be forgotten when all that was issued until then has expired.
        """
        gone = int(now) - MAX_LIFETIME - 2 * SKEW
        keys = [key for key in self.keys.values() if key.not_after is None or key.not_after > gone]
        if not days * 86_400 >= 1:
            raise InvalidArgumentError(f"a list for {days} days would have expired: give more.")
        claims = {
            "iss": self.issuer,
            "version": self.version + 1,
            "iat": int(now),
            "exp": int(now + days * 86_400),
            "keys": [key.to_json() for key in keys],
            "revoked": {nonce: at for nonce, at in self.revoked.items() if at > gone},
        }
        text = jws.sign(canonical_json(claims), owner, TYPE)
        if len(text) > MOST_CHARACTERS:
            raise InvalidArgumentError("the list would be too long to be read: revoke a key instead of each nonce.")
        read_key_list(text, owner.verification_key)
        return text

    def jwks(self) -> dict[str, Any]:
        """The keys that may have signed a permission which still holds, as a JWK set (RFC 7517) for gateways."""
        keys = [
            {"kty": "OKP", "crv": "Ed25519", "x": jws.encode_bytes(each.key.raw), "kid": kid}
            | {"alg": jws.ALGORITHM, "use": "sig"}
            for kid, each in self.keys.items()
            if not each.revoked
        ]
        return {"keys": keys}

    def require_current(self, now: float) -> None:
        """KeyListError where the list has expired, or is from the future."""
        if not now < self.expires_at + SKEW:
            raise KeyListError(
                "the owner's list of keys has expired: get the newest, or renew it with oml-fast permission export."
            )
        if not now >= self.issued_at - SKEW:
            raise KeyListError("the owner's list of keys is from the future: set this machine's clock.")

    def _key(self, kid: str) -> ListedKey:
        if kid not in self.keys:
            raise InvalidArgumentError(f"the list has no key {kid[:40]!r}: it has {', '.join(self.keys) or 'none'}.")
        return self.keys[kid]


def new_key_list(issuer: str) -> KeyList:
    """An empty list, before its first version."""
    if not is_name(issuer):
        raise InvalidArgumentError("the issuer must be one line of printable text of at most 200 characters.")
    return KeyList(issuer, 0, 0, 0)


def read_key_list(text: str, owner: VerificationKey) -> KeyList:
    """The list that the owner signed; KeyListError where it is not, or is none."""
    try:
        payload, _ = jws.read(text, TYPE, MOST_CHARACTERS, lambda kid: owner if kid == owner.kid else None)
        return _parse(jws.parse_object(payload, "its payload"))
    except PermissionDenied as error:
        raise KeyListError(f"the list of keys is not the owner's ({owner.kid}): {error}") from error


def list_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _parse(claims: dict[str, Any]) -> KeyList:
    if set(claims) != _FIELDS or not is_name(claims["iss"]):
        raise MalformedToken(f"it does not hold exactly {', '.join(sorted(_FIELDS))}.")
    if not all(is_time(claims[name]) for name in ("version", "iat", "exp")) or claims["version"] < 1:
        raise MalformedToken("its version or a time is no whole number.")
    keys, revoked = claims["keys"], claims["revoked"]
    if not isinstance(keys, list) or len(keys) > MOST_KEYS:
        raise MalformedToken(f"its keys are no list of at most {MOST_KEYS}.")
    if not isinstance(revoked, dict) or not all(is_nonce(nonce) and is_time(at) for nonce, at in revoked.items()):
        raise MalformedToken("its revocations are no nonces with their times.")
    listed = [_parse_key(key) for key in keys]
    by_kid = {key.key.kid: key for key in listed}
    if len(by_kid) < len(listed):
        raise MalformedToken("it has a key twice.")
    return KeyList(claims["iss"], claims["version"], claims["iat"], claims["exp"], by_kid, revoked)


def _parse_key(value: object) -> ListedKey:
    if (
        not isinstance(value, dict)
        or set(value) != _KEY_FIELDS
        or not isinstance(value["key"], str)
        or not re.fullmatch("[0-9a-f]{64}", value["key"])
        or not is_time(value["not_before"])
        or not (value["not_after"] is None or is_time(value["not_after"]))
        or not isinstance(value["revoked"], bool)
    ):
        raise MalformedToken(f"a key does not hold exactly {', '.join(sorted(_KEY_FIELDS))}.")
    key = VerificationKey(bytes.fromhex(value["key"]))
    return ListedKey(key, value["not_before"], value["not_after"], value["revoked"])
