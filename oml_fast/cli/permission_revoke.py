"""oml-fast permission revoke: revoke permissions, or a key that signed them; signs the list's next version."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InvalidArgumentError
from .common import finish, table
from .permission_common import add_list_options, read_token_file, shown_time, signing_key

if TYPE_CHECKING:
    from ..permission import KeyList

HELP = "revoke permissions, by token or nonce, or all that a key signed"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_list_options(parser)
    parser.add_argument("--nonce", action="append", help="of a permission to revoke; repeatable")
    parser.add_argument("--token", type=Path, action="append", metavar="FILE", help="a token to revoke; repeatable")
    parser.add_argument("--kid", action="append", help="a key to revoke, with all that it signed; repeatable")


def run(options: argparse.Namespace) -> None:
    from ..permission import change_key_file, read_key_file, read_token

    owner, now = signing_key(options.owner_key, options.owner_passphrase_file), time.time()
    listed = read_key_file(options.keys, owner.verification_key)
    tokens = [read_token_file(path) for path in options.token or ()]
    nonces = [*(options.nonce or ()), *(read_token(token, listed.verification_key).nonce for token in tokens)]
    kids = list(options.kid or ())
    if not nonces and not kids:
        raise InvalidArgumentError("nothing to revoke: give --nonce, --token or --kid.")

    def change(keys: KeyList) -> KeyList:
        for nonce in nonces:
            keys = keys.revoking(nonce, now)
        for kid in kids:
            keys = keys.revoking_key(kid, now)
        return keys

    keys = change_key_file(options.keys, owner, change, now=now, days=options.days)
    result = {
        "keys_file": str(options.keys),
        "version": keys.version,
        "expires_at": keys.expires_at,
        "nonces": nonces,
        "kids": kids,
    }
    rows = [
        ("Revoked", f"{len(nonces)} permissions, {len(kids)} keys"),
        ("List of keys", f"{options.keys}, version {keys.version}, until {shown_time(keys.expires_at)}: hand it out"),
    ]
    finish(options, result, table(rows))
