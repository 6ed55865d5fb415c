"""Ed25519 signing keys, and JSON documents signed with them.

A signing key is a PEM file (PKCS 8, mode 0600, encrypted where a passphrase is given); a verification key goes to
whoever checks. A signed document has one field more, `signature`, with the algorithm, the verification key, its `kid`
and the value. The signature covers everything but its own value, as canonical JSON after a prefix that nothing else
signed here begins with.

Order of the checks of `check_document`:
1. the document is a JSON object, and its signature an object of exactly four texts;
2. the algorithm is Ed25519, there is no other;
3. the verification key is one, and `kid` is its own;
4. it is the trusted one, where one is given;
5. the signature holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InvalidArgumentError, SignatureError
from .files import SECRET_MODE, cannot_write

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ALGORITHM = "Ed25519"
_DOMAIN = b"oml_fast signed document v1\n"
_FIELDS = {"algorithm", "kid", "verification_key", "value"}
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
_MOST_BYTES = 65536


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """The public half: 32 raw bytes. Raises SignatureError where they are no Ed25519 key."""

    raw: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.raw, bytes) or len(self.raw) != 32:
            raise SignatureError("a verification key is 32 bytes: give it as 64 hex digits or as PEM.")

    @property
    def kid(self) -> str:
        """The key's short name: the first 16 hex digits of the SHA-256 of its raw bytes."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def hex(self) -> str:
        return self.raw.hex()

    def pem(self) -> str:
        from cryptography.hazmat.primitives import serialization as s

        return _public_key(self.raw).public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo).decode()

    def check(self, message: bytes, signature: bytes) -> None:
        """Raise SignatureError unless `signature` (64 bytes) is this key's over `message`."""
        from cryptography.exceptions import InvalidSignature

        try:
            _public_key(self.raw).verify(signature, message)
        except InvalidSignature as error:
            raise SignatureError(
                f"the signature is not that of the verification key {self.kid} over this content: something in it "
                "was changed. Ask its owner for the original."
            ) from error


@lru_cache(maxsize=64)
def _public_key(raw: bytes) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(raw)


class SigningKey:
    """The secret half. Prints as its `kid` alone."""

    __slots__ = ("_private",)

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    def __repr__(self) -> str:
        return f"SigningKey(kid={self.verification_key.kid!r})"

    @property
    def verification_key(self) -> VerificationKey:
        return VerificationKey(self._private.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """The signature over `message`: 64 bytes, the same for the same message. Documents: `sign_document`."""
        return self._private.sign(message)


def new_signing_key() -> SigningKey:
    """A key from the operating system's generator."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return SigningKey(Ed25519PrivateKey.generate())


def write_signing_key(path: str | Path, key: SigningKey, passphrase: str | None = None) -> None:
    """Write `key` to a new 0600 file, encrypted where a passphrase is given.

    An existing file is never overwritten (InvalidArgumentError), not even by two calls at the same time.
    """
    from cryptography.hazmat.primitives import serialization as s

    if passphrase == "":
        raise InvalidArgumentError("the passphrase is empty: give one, or ask for no encryption.")
    encryption = s.BestAvailableEncryption(passphrase.encode()) if passphrase else s.NoEncryption()
    pem = key._private.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, encryption)
    path = Path(path)
    made = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, SECRET_MODE), "wb") as file:
            made = True
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if not made and os.path.lexists(path):
            raise InvalidArgumentError(
                f"{path} already exists: a signing key is never overwritten. Choose another --out."
            ) from error
        if made:
            path.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def is_encrypted(path: str | Path) -> bool:
    """Whether the signing key in a file needs a passphrase. SignatureError where there is no file."""
    return _ENCRYPTED in _read_private(Path(path))


def read_signing_key(path: str | Path, passphrase: str | None = None) -> SigningKey:
    """Read a signing key.

    Raises SignatureError where others can read the file, it holds no Ed25519 key, or the passphrase is wrong.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem = _read_private(Path(path))
    encrypted = _ENCRYPTED in pem
    if encrypted and not passphrase:
        raise SignatureError(f"{path} is encrypted: give its passphrase.")
    try:
        key = load_pem_private_key(pem, passphrase.encode() if encrypted and passphrase else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        reason = "its passphrase is another, or it is damaged" if encrypted else "it is no PEM, or is damaged"
        raise SignatureError(f"cannot read the signing key {path}: {reason}.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"{path} holds a key of another kind: make an Ed25519 key with oml-fast keygen.")
    return SigningKey(key)


def read_verification_key(path: str | Path) -> VerificationKey:
    """Read a verification key from a file with its PEM, or with its 64 hex digits (SignatureError)."""
    try:
        text = Path(path).read_bytes()[:_MOST_BYTES].decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SignatureError(f"cannot read the verification key {path}: name a file with its PEM or hex.") from error
    return parse_verification_key(text, str(path))


def parse_verification_key(text: str, what: str = "the verification key") -> VerificationKey:
    """A verification key from its PEM or its 64 hex digits; `what` names it in the error (SignatureError)."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if re.fullmatch("[0-9a-f]{64}", text):
        return VerificationKey(bytes.fromhex(text))
    if "PRIVATE KEY" in text:
        raise SignatureError(f"{what} is a signing key: keep it to yourself, and name the verification key.")
    try:
        key = load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{what} is neither PEM nor 64 hex digits in small letters.") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"{what} holds a key of another kind: Ed25519 is needed.")
    return VerificationKey(key.public_bytes_raw())


def canonical_json(value: Any) -> bytes:
    """The one way to write a JSON value: sorted names, no spaces, UTF-8, no NaN or infinity.

    Raises InvalidArgumentError where the value is no plain JSON.
    """
    try:
        _require_texts_as_names(value)
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        reason = "it holds half a character" if isinstance(error, UnicodeEncodeError) else error
        raise InvalidArgumentError(f"cannot be written as JSON: {reason}. Use plain JSON values.") from error


def parse_json(text: str, what: str) -> Any:
    """Read JSON strictly: no name twice in an object, no NaN, no infinity (InvalidArgumentError that names `what`)."""
    try:
        return _READER.decode(text)
    except _Refused as error:
        raise InvalidArgumentError(f"{what}: {error}. Ask for the original.") from error
    except json.JSONDecodeError as error:
        message = f"{what} is cut short or damaged (line {error.lineno}, column {error.colno})."
        raise InvalidArgumentError(message) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets in thousands
        raise InvalidArgumentError(f"{what} is damaged.") from error


def sign_document(document: Mapping[str, Any], key: SigningKey) -> dict[str, Any]:
    """A copy of `document` in plain JSON values, with its `signature`. InvalidArgumentError where it has one."""
    if "signature" in document:
        raise InvalidArgumentError("the document is signed already: sign the one without its signature.")
    own = key.verification_key
    signature = {"algorithm": ALGORITHM, "kid": own.kid, "verification_key": own.hex()}
    signed: dict[str, Any] = json.loads(canonical_json({**document, "signature": signature}))
    signed["signature"]["value"] = key.sign(_message(signed)).hex()
    return signed


def check_document(document: Any, trusted: VerificationKey | None) -> str:
    """The `kid` of the key that signed `document`; SignatureError where the signature does not hold.

    With `trusted` None any key will do, which shows that nothing was changed since, and not by whom it was signed.
    """
    signature = document.get("signature") if isinstance(document, dict) else None
    if not isinstance(signature, dict):
        raise SignatureError("the document is not signed: ask its owner for the signed one.")
    if set(signature) != _FIELDS or not all(isinstance(value, str) for value in signature.values()):
        raise SignatureError(f"the signature does not hold exactly the texts {', '.join(sorted(_FIELDS))}.")
    if signature["algorithm"] != ALGORITHM:
        raise SignatureError(f"the signature's algorithm is {signature['algorithm'][:40]!r}: only {ALGORITHM} counts.")
    if not re.fullmatch("[0-9a-f]{64}", signature["verification_key"]):
        raise SignatureError("the signature's verification key is not 64 hex digits in small letters.")
    key = VerificationKey(bytes.fromhex(signature["verification_key"]))
    if signature["kid"] != key.kid:
        raise SignatureError(f"the signature's kid is not that of its verification key, {key.kid}.")
    if trusted is not None and key != trusted:
        raise SignatureError(f"the document is signed by {key.kid}, and the key that is trusted is {trusted.kid}.")
    if not re.fullmatch("[0-9a-f]{128}", signature["value"]):
        raise SignatureError("the signature's value is not 128 hex digits in small letters: it was cut or changed.")
    try:
        message = _message(document)
    except InvalidArgumentError as error:
        raise SignatureError(f"the document {error}") from error
    key.check(message, bytes.fromhex(signature["value"]))
    return key.kid


def _message(document: Mapping[str, Any]) -> bytes:
    """What is signed: everything but the signature's value."""
    signature = {name: value for name, value in document["signature"].items() if name != "value"}
    return _DOMAIN + canonical_json({**document, "signature": signature})


def _read_private(path: Path) -> bytes:
    """A signing key's file, read only if nobody else can."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(_MOST_BYTES)
    except FileNotFoundError as error:
        raise SignatureError(
            f"no signing key at {path}: name it, or make one with oml-fast keygen (for tokens: permission keygen)."
        ) from error
    except OSError as error:
        raise SignatureError(f"cannot read the signing key {path}: {error.strerror}.") from error
    if b"PRIVATE KEY" not in content:
        raise SignatureError(f"{path} is no signing key: name the PEM file that keygen wrote.")
    if mode & 0o077:
        raise SignatureError(f"{path} can be read by others (mode {mode:04o}): chmod 600 {path}")
    return content


def _require_texts_as_names(value: Any) -> None:
    """json.dumps would turn the names 1, True and None into texts, and two of them into one."""
    if isinstance(value, dict):
        for name, each in value.items():
            if not isinstance(name, str):
                raise TypeError(f"the name {name!r} is no text")
            _require_texts_as_names(each)
    elif isinstance(value, list | tuple):
        for each in value:
            _require_texts_as_names(each)


class _Refused(ValueError):  # noqa: N818 - never leaves this file
    """What is wrong with JSON that is well-formed; parse_json adds where."""


def _distinct(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise _Refused(f"an object has the name {name[:40]!r} twice")
        result[name] = value
    return result


def _no_constant(name: str) -> None:
    raise _Refused(f"{name} is no JSON number")


def _finite(text: str) -> float:
    if abs(value := float(text)) == float("inf"):
        raise _Refused(f"the number {text[:40]} is too large")
    return value


_READER = json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=_no_constant, parse_float=_finite)
