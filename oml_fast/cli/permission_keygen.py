"""oml-fast permission keygen: make a key that signs permissions, and enter it into the owner's list."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InvalidArgumentError
from .common import finish, table
from .keygen import new_passphrase
from .permission_common import add_list_options, read_passphrase, shown_time, signing_key

if TYPE_CHECKING:
    from ..permission import KeyList

HELP = "make a signing key (Ed25519) for permissions, and enter it into the owner's list of keys"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the signing key, a new file")
    add_list_options(parser)
    parser.add_argument("--issuer", metavar="NAME", help="the owner's name, to begin a list")
    parser.add_argument(
        "--retire", action="append", metavar="KID", help="a key that signs nothing from now on; repeatable"
    )
    parser.add_argument(
        "--encrypt", action="store_true", help="with a passphrase: of the file, the environment, or asked"
    )
    parser.add_argument("--passphrase-file", type=Path, metavar="FILE", help="file with the new key's passphrase")


def run(options: argparse.Namespace) -> None:
    from ..permission import change_key_file
    from ..signing import new_signing_key, write_signing_key

    if options.passphrase_file and not options.encrypt:
        raise InvalidArgumentError("--passphrase-file is given: give --encrypt as well, or leave it out.")
    owner = signing_key(options.owner_key, options.owner_passphrase_file)
    key, now = new_signing_key(), time.time()

    def change(keys: KeyList) -> KeyList:
        for kid in options.retire or ():
            keys = keys.retiring(kid, now)
        return keys.with_key(key.verification_key, now)

    write_signing_key(options.out, key, _passphrase(options))
    try:
        keys = change_key_file(options.keys, owner, change, now=now, days=options.days, issuer=options.issuer)
    except BaseException:
        options.out.unlink(missing_ok=True)  # nobody would trust it
        raise
    result = {
        "kid": key.verification_key.kid,
        "verification_key": key.verification_key.hex(),
        "signing_key_file": str(options.out),
        "encrypted": options.encrypt,
        "keys_file": str(options.keys),
        "version": keys.version,
        "expires_at": keys.expires_at,
    }
    rows = [
        ("Key", result["kid"]),
        ("Signing key", f"{options.out}{', encrypted' if options.encrypt else ''}: back it up, and show it to nobody"),
        ("List of keys", f"{options.keys}, version {keys.version}, until {shown_time(keys.expires_at)}: hand it out"),
    ]
    finish(options, result, table([(name, str(value)) for name, value in rows]))


def _passphrase(options: argparse.Namespace) -> str | None:
    if not options.encrypt:
        return None
    if options.passphrase_file is not None:
        return read_passphrase(options.passphrase_file)
    return new_passphrase()
