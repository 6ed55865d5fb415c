"""Permission tokens: JWTs (RFC 7519) with the type `oml-permission+jwt`, signed with EdDSA (Ed25519) and nothing else.

| part | holds |
|---|---|
| header | `alg` EdDSA, `typ` oml-permission+jwt, `kid` of the signing key; nothing else |
| `iss`, `sub` | the owner, as the list of keys names them; the licensee |
| `aud` | digest of the model, or a list of them |
| `iat`, `nbf`, `exp` | issued, valid from, valid until: whole seconds |
| `jti` | the nonce: 22 to 64 characters of base64url |
| `use` | session or once |
| `limits` | optional: requests, output_tokens, paths, body_sha256 |

`read_token` checks form and signature, in the order of `jws.read`, and then every claim; whether the permission holds
now, here and for this request is `check`'s part.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import InvalidArgumentError, MalformedToken
from ..signing import SigningKey, VerificationKey, canonical_json
from . import jws
from .permission import Limits, Permission, permission_from_claims

TYPE = "oml-permission+jwt"
MOST_CHARACTERS = 4096
LIFETIMES = {"session": 86_400, "once": 600}  # seconds, where none is asked for


def issue(
    key: SigningKey,
    *,
    issuer: str,
    licensee: str,
    models: str | Sequence[str],
    use: str = "session",
    lifetime: int | None = None,
    not_before: int | None = None,
    limits: Limits | None = None,
    nonce: str | None = None,
    now: float | None = None,
) -> str:
    """A permission token for a licensee.

    models: digest or digests of the models. lifetime: seconds from now or `not_before`, whichever is later; 86,400 for
    a session, 600 for a single use. nonce: 128 bits of the operating system's generator, unless given. Raises
    InvalidArgumentError where `check` would refuse the token whenever it came.
    """
    if use not in LIFETIMES:
        raise InvalidArgumentError(f"the use {str(use)[:40]!r} is unknown: choose {' or '.join(LIFETIMES)}.")
    issued = int(time.time() if now is None else now)
    start = issued if not_before is None else not_before
    names = [models] if isinstance(models, str) else list(models)
    claims: dict[str, Any] = {
        "iss": issuer,
        "sub": licensee,
        "aud": names[0] if len(names) == 1 else names,
        "iat": issued,
        "nbf": start,
        "exp": max(issued, start) + (LIFETIMES[use] if lifetime is None else lifetime),
        "jti": secrets.token_hex(16) if nonce is None else nonce,
        "use": use,
    }
    if limits is not None and (limited := limits.claims()):
        claims["limits"] = limited
    try:
        permission_from_claims(claims, key.verification_key.kid)
    except MalformedToken as error:
        raise InvalidArgumentError(f"such a permission cannot be issued: {error}") from error
    token = jws.sign(canonical_json(claims), key, TYPE)
    if len(token) > MOST_CHARACTERS:
        raise InvalidArgumentError(
            f"the token has {len(token)} characters, at most {MOST_CHARACTERS} are read: name fewer paths or models."
        )
    return token


def read_token(token: str, key_of: Callable[[str], VerificationKey | None]) -> Permission:
    """The permission in a token whose signature holds. Raises MalformedToken or BadSignature."""
    payload, kid = jws.read(token, TYPE, MOST_CHARACTERS, key_of)
    return permission_from_claims(jws.parse_object(payload, "its payload"), kid)
