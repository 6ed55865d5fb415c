"""oml-fast permission export: the owner's keys as a JWK set for gateways, or the signed list, renewed where asked."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from ..errors import InvalidArgumentError
from .common import finish, table
from .permission_common import add_owner_options, shown_time, signing_key

HELP = "write the owner's keys as a JWK set for gateways, or the signed list, renewed where asked"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keys", type=Path, required=True, metavar="FILE", help="the owner's list of keys")
    parser.add_argument("--verification-key", type=Path, metavar="FILE", help="the owner's")
    parser.add_argument("--form", choices=("jwks", "list"), default="jwks", help="what to write (default: jwks)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to (default: print)")
    parser.add_argument("--renew", action="store_true", help="sign the list's next version first, with --owner-key")
    parser.add_argument("--owner-key", type=Path, metavar="FILE", help="the owner's signing key, to renew the list")
    add_owner_options(parser)


def run(options: argparse.Namespace) -> None:
    from ..files import read_text, write_atomic
    from ..permission import change_key_file, read_key_file, read_key_list
    from ..signing import read_verification_key

    if options.renew != (options.owner_key is not None):
        raise InvalidArgumentError("--renew and --owner-key belong together: give both, or neither.")
    if options.renew:
        owner = signing_key(options.owner_key, options.owner_passphrase_file)
        change_key_file(options.keys, owner, lambda keys: keys, now=time.time(), days=options.days)
        trusted = owner.verification_key
    elif options.verification_key is not None:
        trusted = read_verification_key(options.verification_key)
    else:
        raise InvalidArgumentError("whose list is it? Give the owner's --verification-key.")
    read_key_file(options.keys, trusted)
    signed = read_text(options.keys, "the list of keys").strip()
    keys = read_key_list(signed, trusted)
    content = signed if options.form == "list" else json.dumps(keys.jwks(), indent=2)
    result = {"form": options.form, "version": keys.version, "expires_at": keys.expires_at}
    result |= {"out": options.out and str(options.out), options.form: signed if options.form == "list" else keys.jwks()}
    if options.out is None:
        finish(options, result, content)
        return
    write_atomic(options.out, content + "\n")
    rows = [
        ("Written", f"{options.out}: {options.form} of {len(keys.keys)} keys, {len(keys.revoked)} revoked permissions"),
        ("List of keys", f"version {keys.version}, until {shown_time(keys.expires_at)}"),
    ]
    finish(options, result, table(rows))
