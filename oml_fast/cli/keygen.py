"""oml-fast keygen: make a signing key, and the verification key for those who check what it signs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .. import settings
from ..errors import InvalidArgumentError
from .common import finish, table

if TYPE_CHECKING:
    from ..signing import SigningKey

HELP = "make a signing key (Ed25519) for reports and permissions"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the signing key; its verification key in FILE.pub"
    )
    parser.add_argument(
        "--encrypt", action="store_true", help="with the passphrase of OML_FAST_SIGNING_PASSPHRASE, or asked for"
    )


def run(options: argparse.Namespace) -> None:
    from ..files import require_writable, write_atomic
    from ..signing import new_signing_key, write_signing_key

    public = options.out.with_name(options.out.name + ".pub")
    if public.exists():
        raise InvalidArgumentError(f"{public} already exists: choose another --out.")
    if settings.signing_passphrase() and not options.encrypt:
        raise InvalidArgumentError("OML_FAST_SIGNING_PASSPHRASE is set: give --encrypt as well, or unset it.")
    require_writable(public)
    key = new_signing_key()
    write_signing_key(options.out, key, new_passphrase() if options.encrypt else None)
    write_atomic(public, key.verification_key.pem())
    result = {
        "kid": key.verification_key.kid,
        "verification_key": key.verification_key.hex(),
        "verification_key_file": str(public),
        "signing_key_file": str(options.out),
        "encrypted": options.encrypt,
    }
    rows = [
        ("Key", result["kid"]),
        ("Verification key", f"{result['verification_key']}, and as PEM in {public}: hand it out"),
        ("Signing key", f"{options.out}{', encrypted' if options.encrypt else ''}: back it up, and show it to nobody"),
    ]
    finish(options, result, table(rows))


def load_signing_key(path: Path) -> SigningKey:
    """The signing key in a file. The passphrase of an encrypted one is read from the environment, or asked for."""
    from ..signing import is_encrypted, read_signing_key

    if not is_encrypted(path):
        return read_signing_key(path)
    return read_signing_key(path, settings.signing_passphrase() or _ask(f"Passphrase of {path}: "))


def new_passphrase() -> str:
    """A passphrase for a new key: from the environment, or asked for twice."""
    if given := settings.signing_passphrase():
        return given
    first = _ask("Passphrase: ")
    if first != _ask("The same again: "):
        raise InvalidArgumentError("the two passphrases differ: start again.")
    return first


def _ask(prompt: str) -> str:
    """A passphrase typed at a terminal, which does not show it."""
    import getpass

    if not sys.stdin.isatty():
        raise InvalidArgumentError("there is no terminal to ask for the passphrase: set OML_FAST_SIGNING_PASSPHRASE.")
    return getpass.getpass(prompt)
