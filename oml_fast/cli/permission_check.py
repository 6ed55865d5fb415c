"""oml-fast permission check: would a token be permitted now? Nothing is spent."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ..errors import PermissionDenied
from .commit_make import add_model_options
from .common import finish, table
from .permission_common import one_model, open_store, read_token_file, request, seconds, shown_time

HELP = "say whether a permission token would be permitted; spends nothing"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--token", type=Path, required=True, metavar="FILE", help="the token; -: standard input")
    parser.add_argument("--keys", type=Path, required=True, metavar="FILE", help="the owner's list of keys")
    parser.add_argument(
        "--verification-key", type=Path, required=True, metavar="FILE", help="the owner's, had from elsewhere"
    )
    add_model_options(parser, "folder of the model that is asked")
    parser.add_argument("--path", help="path of the request")
    parser.add_argument("--body", type=Path, metavar="FILE", help="body of the request")
    parser.add_argument("--requests", type=int, default=1, metavar="N", help="prompts times choices (default: 1)")
    parser.add_argument("--output-tokens", type=int, metavar="N", help="the most that may be generated for them")
    parser.add_argument(
        "--store", metavar="PATH", help="the server's store, or a registry's URL: also nonce and quota there"
    )
    parser.add_argument("--at", type=str, metavar="TIME", help="check as of this time (default: now)")


def run(options: argparse.Namespace) -> None:
    from ..permission import Checker, KeyFile, MemoryStore
    from ..signing import read_verification_key

    now = float(seconds(options.at, "--at") or time.time())
    model = one_model(options)
    owner = read_verification_key(options.verification_key)
    token = read_token_file(options.token)
    store = open_store(options.store) if options.store else MemoryStore(now=float("-inf"))
    try:
        checker = Checker(KeyFile(options.keys, owner, store), model, store, now=now)
        permission = checker.look(token, request=request(options, model), now=now)
    except PermissionDenied as refusal:
        result = {"allowed": False, "reason": refusal.code, "message": str(refusal), "store": options.store}
        finish(options, result, table([("Allowed", "no"), ("Reason", f"{refusal.code}: {refusal}")]))
        raise type(refusal)(f"the permission is refused ({refusal.code}): {refusal}") from refusal
    finally:
        store.close()
    fields = permission.to_json()
    finish(options, {"allowed": True, "reason": None, "store": options.store, **fields}, _text(fields, options.store))


def _text(fields: dict[str, Any], store: str | None) -> str:
    rows = [
        ("Allowed", "yes"),
        ("Licensee", fields["licensee"]),
        ("Issuer", f"{fields['issuer']}, key {fields['kid']}"),
        ("Models", ", ".join(fields["models"])),
        ("Use", fields["use"]),
        ("Valid", f"{shown_time(fields['not_before'])} to {shown_time(fields['expires_at'])}"),
        ("Nonce", f"{fields['nonce']}{'' if store else ', not looked up: name the --store'}"),
    ]
    rows += [("Limit", f"{name} {value}") for name, value in fields["limits"].items()]
    return table(rows)
