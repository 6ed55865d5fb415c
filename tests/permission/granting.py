"""An owner with a list of keys, tokens of theirs, and tokens that nobody should believe."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from dataclasses import dataclass
from typing import Any

import pytest

from oml_fast.errors import PermissionDenied
from oml_fast.permission import (
    Checker,
    Earlier,
    FixedKeys,
    KeyList,
    Limits,
    MemoryStore,
    Nonce,
    Permission,
    Request,
    SqliteStore,
    Store,
    issue,
    new_key_list,
    read_key_list,
    read_token,
)
from oml_fast.registry import PermissionStore
from oml_fast.signing import SigningKey, new_signing_key

NOW = 1_800_000_000
MODEL = "ab" * 32
OTHER_MODEL = "cd" * 32
BODY = hashlib.sha256(b"body").hexdigest()
ISSUER = "Acme Models"
TEST_ALL = os.environ.get("OML_FAST_TEST_ALL") == "1"
OWNER = new_signing_key()
KEY = new_signing_key()
ATTACKER = new_signing_key()
KID = KEY.verification_key.kid
FORGET = NOW + 1000
QUOTA = Limits(requests=100, output_tokens=1000)


def key_list(*, key: SigningKey = KEY, now: int = NOW - 1000) -> KeyList:
    keys = new_key_list(ISSUER).with_key(key.verification_key, now)
    return read_key_list(keys.signed(OWNER, now), OWNER.verification_key)


def token(key: SigningKey = KEY, *, now: int = NOW, **given: Any) -> str:
    return issue(key, now=now, **({"issuer": ISSUER, "licensee": "Bolt", "models": MODEL} | given))


def checker(store: Store | None = None, keys: KeyList | None = None, **given: Any) -> Checker:
    store = MemoryStore(now=NOW - 500) if store is None else store
    return Checker(FixedKeys(keys or key_list()), MODEL, store, now=NOW, **given)


def opened(where: str, now: float = NOW) -> Store:
    """The store that processes share, at a path or URL."""
    if "://" in where or where.endswith("registry"):
        return PermissionStore(where, now=now)
    return SqliteStore(where, now=now)


def nonce(name: str = "a", issuer: str = "Acme", issued_at: int = NOW, forget_at: int = FORGET) -> Nonce:
    """As a store is asked for it."""
    return Nonce(issuer, name, issued_at, forget_at)


def spend(store: Store, name: str = "a", body: str | None = None, now: float = NOW, **given: Any) -> Earlier | None:
    return store.spend(nonce(name, **given), body, now, 10.0)


def read(text: Any) -> Permission:
    """The permission in a token of KEY."""
    return read_token(text, lambda kid: KEY.verification_key if kid == KID else None)


def refused(text: Any, error: type[PermissionDenied]) -> None:
    """Both where it is read and where it is checked, as just that."""
    with pytest.raises(error) as caught:
        read(text)
    assert type(caught.value) is error
    with pytest.raises(error):
        checker().admit(text, now=NOW)
    assert len(str(caught.value)) < 200


def nonce_of(text: str) -> Nonce:
    return Nonce.of(read(text))


def b64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def unb64(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def parts(text: str) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    header, payload, signature = text.split(".")
    return json.loads(unb64(header)), json.loads(unb64(payload)), unb64(signature)


def signed(header: Any, payload: Any, key: SigningKey = KEY) -> str:
    """Any header and payload, raw where they are bytes, with a signature that holds."""
    raw = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in (header, payload)]
    message = f"{b64(raw[0])}.{b64(raw[1])}"
    return f"{message}.{b64(key.sign(message.encode()))}"


def hs256(header: dict[str, Any], payload: dict[str, Any], secret: bytes) -> str:
    message = f"{b64(json.dumps(header | {'alg': 'HS256'}).encode())}.{b64(json.dumps(payload).encode())}"
    return f"{message}.{b64(hmac.new(secret, message.encode(), hashlib.sha256).digest())}"


TOKEN = token()
HEADER, CLAIMS, SIGNATURE = parts(TOKEN)


@dataclass(frozen=True)
class Kind:
    """A kind of token, and a request that it permits."""

    use: str
    limits: Limits
    request: Request

    def token(self, key: SigningKey = KEY, **given: Any) -> str:
        return token(key, **({"use": self.use, "limits": self.limits} | given))


KINDS = {
    "session": Kind("session", Limits(paths=("/v1/completions",)), Request(path="/v1/completions")),
    "session with a quota": Kind("session", Limits(3, 50), Request(output_tokens=20)),
    "once": Kind("once", Limits(2, 50), Request(output_tokens=20)),
    "once, for a body": Kind("once", Limits(body_sha256=BODY), Request(body_sha256=BODY)),
}
