"""An owner with a list of keys, tokens of theirs, and tokens that nobody should believe."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

from oml_fast.permission import (
    Checker,
    FixedKeys,
    KeyList,
    MemoryStore,
    SqliteStore,
    Store,
    issue,
    new_key_list,
    read_key_list,
)
from oml_fast.registry import PermissionStore
from oml_fast.signing import SigningKey, new_signing_key

NOW = 1_800_000_000
MODEL = "ab" * 32
OTHER_MODEL = "cd" * 32
BODY = hashlib.sha256(b"body").hexdigest()
ISSUER = "Acme Models"
OWNER = new_signing_key()
KEY = new_signing_key()
ATTACKER = new_signing_key()


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
