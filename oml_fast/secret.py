"""The owner's secret: make it, keep it, commit to it, draw from it.

Every choice that must be uniform and unknown to others (which candidate of the window is the response, which words
start the keys) is a keyed hash of this secret, so that the owner can later prove that the choices were not picked to
fit a suspect [SF E.4, CH]. Losing the secret loses that proof; leaking it gives the responses away.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import FingerprintFormatError, InvalidArgumentError
from .files import SECRET_MODE, write_atomic

_PREFIX = "oml-fast-secret-v1:"
_BYTES = 32


def new_secret() -> bytes:
    """32 bytes from the operating system's generator."""
    return secrets.token_bytes(_BYTES)


def write_secret(path: str | Path, secret: bytes) -> None:
    """Write `secret` to a new 0600 file. An existing file is never overwritten (InvalidArgumentError)."""
    if os.path.lexists(path):
        raise InvalidArgumentError(f"{path} already exists: a secret is never overwritten. Choose another --secret.")
    write_atomic(path, f"{_PREFIX}{secret.hex()}\n", SECRET_MODE)


def read_secret(path: str | Path) -> bytes:
    """Read a secret file; refuses one that others can read, or that is damaged (FingerprintFormatError)."""
    try:
        mode = os.stat(path).st_mode
        text = Path(path).read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise FingerprintFormatError(f"no secret at {path}: restore it from its backup, or name it.") from error
    except OSError as error:
        raise FingerprintFormatError(f"cannot read the secret {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise FingerprintFormatError(f"cannot read the secret {path}: it is no oml-fast secret file.") from error
    if not text.startswith(_PREFIX):
        raise FingerprintFormatError(f"{path} is no oml-fast secret: name the one that generate wrote beside the set.")
    if stat.S_IMODE(mode) & 0o077:
        raise FingerprintFormatError(f"{path} can be read by others (mode {stat.S_IMODE(mode):04o}): chmod 600 {path}")
    try:
        secret = bytes.fromhex(text.removeprefix(_PREFIX))
    except ValueError:
        secret = b""
    if len(secret) != _BYTES or text != f"{_PREFIX}{secret.hex()}":
        raise FingerprintFormatError(f"{path} is damaged: restore it from its backup.")
    return secret


def commitment(secret: bytes) -> str:
    """A digest that fixes the secret without giving it away (hex). Kept in the fingerprints file."""
    return _keyed(secret, [b"commitment"]).hex()


def draw(secret: bytes, parts: Sequence[bytes], width: int, count: int) -> tuple[int, ...]:
    """Draw `count` distinct indices from range(`width`), uniformly, without replacement (Fisher-Yates).

    Slot s takes the keyed digest of `parts` and s as an integer below 2**256 and maps it to the remaining range by
    multiplying and shifting; the bias is below width / 2**256. The same arguments always give the same draw.
    """
    if not 1 <= count <= width:
        raise InvalidArgumentError(f"cannot draw {count} of {width}: ask for between 1 and the width.")
    order = list(range(width))
    for slot in range(count):
        value = int.from_bytes(_keyed(secret, [b"draw", *parts, str(slot).encode()]), "big")
        other = slot + (value * (width - slot) >> 256)
        order[slot], order[other] = order[other], order[slot]
    return tuple(order[:count])


def uniforms(secret: bytes, parts: Sequence[bytes], count: int) -> list[float]:
    """`count` independent uniform numbers in [0, 1), 53 bits each, fixed by the secret and `parts`."""
    digests = (_keyed(secret, [b"uniform", *parts, str(i).encode()]) for i in range(count))
    return [(int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53 for digest in digests]


def order(secret: bytes, numbers: Iterable[int]) -> tuple[int, ...]:
    """The numbers in an order that the secret alone fixes: those that follow are not to be told from those before."""
    return tuple(sorted(numbers, key=lambda number: _keyed(secret, [b"order", str(number).encode()])))


def salt(secret: bytes, content: bytes) -> bytes:
    """32 bytes that hide `content` behind a digest: with the salt it can be checked, without it not even guessed."""
    return _keyed(secret, [b"salt", content])


def _keyed(secret: bytes, parts: Sequence[bytes]) -> bytes:
    """HMAC-SHA256 over the parts, each with its length before it, so that no two lists of parts collide."""
    message = b"".join(len(part).to_bytes(8, "big") + part for part in (b"oml_fast", *parts))
    return hmac.new(secret, message, hashlib.sha256).digest()
