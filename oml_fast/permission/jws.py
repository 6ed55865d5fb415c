"""Signed compact texts (JWS, RFC 7515): EdDSA with Ed25519 (RFC 8037), and no other algorithm is even registered.

Order of the checks of `read`:
1. the text is ASCII, not longer than its limit, and three parts in base64url as an encoder writes it;
2. the header is one JSON object with exactly the names alg, kid and typ, so `crit` and whatever it asks is refused;
3. `alg` is EdDSA, `typ` the one wanted;
4. `kid` names a key that is trusted;
5. the signature holds.
Only then are the bytes between the dots returned, to be parsed.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from jwt import PyJWS
from jwt.algorithms import Algorithm

from ..errors import BadSignature, InvalidArgumentError, MalformedToken, SignatureError
from ..signing import SigningKey, VerificationKey, parse_json

ALGORITHM = "EdDSA"
_PARTS = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{86})")
_LAST = {1: "", 2: "AQgw", 3: "AEIMQUYcgkosw048"}  # by a part's length modulo 4: the last characters of an encoder


class _Ed25519(Algorithm):
    """The signing keys of `oml_fast.signing` behind the interface of PyJWT, which asks for more than signing.

    `read` checks what PyJWT would, and more, so it asks the verification key itself: a fifth of a check is saved.
    """

    def prepare_key(self, key: Any) -> SigningKey:
        assert isinstance(key, SigningKey)
        return key

    def sign(self, msg: bytes, key: Any) -> bytes:
        signature: bytes = key.sign(msg)
        return signature

    def verify(self, msg: bytes, key: Any, sig: bytes) -> bool:
        raise NotImplementedError

    @staticmethod
    def to_jwk(key_obj: Any, as_dict: bool = False) -> Any:
        raise NotImplementedError

    @staticmethod
    def from_jwk(jwk: Any) -> Any:
        raise NotImplementedError


_JWS = PyJWS(algorithms=[])
_JWS.register_algorithm(ALGORITHM, _Ed25519())


def sign(payload: bytes, key: SigningKey, typ: str) -> str:
    """The compact text of `payload`, signed."""
    headers = {"typ": typ, "kid": key.verification_key.kid}
    return _JWS.encode(payload, key, algorithm=ALGORITHM, headers=headers)  # type: ignore[arg-type]


def read(text: str, typ: str, most: int, key_of: Callable[[str], VerificationKey | None]) -> tuple[bytes, str]:
    """The payload of a signed text of at most `most` characters, and the `kid` of its key.

    Raises MalformedToken or BadSignature. Neither says anything of what the text holds.
    """
    parts = _PARTS.fullmatch(text) if isinstance(text, str) and len(text) <= most else None
    if parts is None:
        raise MalformedToken(f"it is no signed text of three parts and at most {most} characters.")
    header, payload, signature = map(_decoded, parts.groups())
    kid = _kid_in(header, typ)
    key = key_of(kid)
    if key is None:
        raise BadSignature("its key is not in the owner's list.")
    try:
        key.check(text[: parts.start(3) - 1].encode("ascii"), signature)
    except SignatureError as error:
        raise BadSignature("its signature does not hold.") from error
    return payload, kid


def parse_object(content: bytes, what: str) -> dict[str, Any]:
    """One JSON object in UTF-8 without a name twice; MalformedToken names `what` and nothing of the content."""
    try:
        value = parse_json(content.decode("utf-8"), what)
    except (UnicodeDecodeError, InvalidArgumentError):
        value = None
    if not isinstance(value, dict):
        raise MalformedToken(f"{what} is not one JSON object in UTF-8 with each name once.")
    return value


def encode_bytes(content: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


@lru_cache(maxsize=64)
def _kid_in(header: bytes, typ: str) -> str:
    """Steps 2 and 3. All texts that one key signs have one header, so it is parsed once."""
    value = parse_object(header, "its header")
    if set(value) != {"alg", "kid", "typ"} or not isinstance(value["kid"], str):
        raise MalformedToken("its header does not hold exactly alg, kid and typ.")
    if value["alg"] != ALGORITHM:
        raise BadSignature(f"its algorithm is not {ALGORITHM}: there is no other.")
    if value["typ"] != typ:
        raise MalformedToken(f"its type is not {typ}.")
    return str(value["kid"])


def _decoded(part: str) -> bytes:
    """The bytes of a part. MalformedToken where a bit is left over that a decoder would drop."""
    left = len(part) % 4
    if left and part[-1] not in _LAST[left]:
        raise MalformedToken("a part of it is not base64url as an encoder writes it.")
    return binascii.a2b_base64(part.replace("-", "+").replace("_", "/") + "==")
