"""oml-fast permission issue: sign a permission token for a licensee."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InvalidArgumentError
from .commit_make import add_model_options
from .common import finish, table
from .permission_common import body_digest, one_model, seconds, shown_time, signing_key

HELP = "sign a permission token for a licensee"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="what permission keygen made")
    parser.add_argument("--passphrase-file", type=Path, metavar="FILE", help="file with its passphrase, for you alone")
    parser.add_argument("--issuer", required=True, metavar="NAME", help="the owner's name, as in the list of keys")
    parser.add_argument("--licensee", required=True, metavar="NAME", help="who may use the model")
    add_model_options(parser, "folder of the model")
    parser.add_argument(
        "--also", action="append", metavar="HEX", help="digest of another model that it is for; repeatable"
    )
    parser.add_argument("--use", choices=("session", "once"), default="session", help="how often (default: session)")
    parser.add_argument(
        "--lifetime", type=int, metavar="SECONDS", help="until it expires (default: 86400, of a single use 600)"
    )
    parser.add_argument("--not-before", type=str, metavar="TIME", help="when it begins to hold (default: now)")
    parser.add_argument("--requests", type=int, metavar="N", help="limit of requests in all")
    parser.add_argument("--output-tokens", type=int, metavar="N", help="limit of generated token ids in all")
    parser.add_argument("--path", action="append", help="limit to this path, as /v1/completions; repeatable")
    parser.add_argument("--body", type=Path, metavar="FILE", help="limit to this body of a request")
    parser.add_argument("--body-digest", metavar="HEX", help="its digest, where the body is not here")
    parser.add_argument("--nonce", help="22 to 64 characters of base64url (default: drawn)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write it into a new file, mode 0600 (default: print)")


def run(options: argparse.Namespace) -> None:
    from ..files import SECRET_MODE, write_atomic
    from ..permission import Limits, issue, read_token

    if options.body is not None and options.body_digest is not None:
        raise InvalidArgumentError("--body and --body-digest are both given: leave one out.")
    if options.out is not None and options.out.exists():
        raise InvalidArgumentError(f"{options.out} already exists: choose another --out.")
    limits = Limits(
        options.requests,
        options.output_tokens,
        tuple(options.path) if options.path else None,
        options.body_digest or body_digest(options.body),
    )
    key = signing_key(options.key, options.passphrase_file)
    token = issue(
        key,
        issuer=options.issuer,
        licensee=options.licensee,
        models=[one_model(options), *(options.also or ())],
        use=options.use,
        lifetime=options.lifetime,
        not_before=seconds(options.not_before, "--not-before"),
        limits=limits,
        nonce=options.nonce,
    )
    permission = read_token(token, lambda _: key.verification_key)
    result = {"token": token, "out": None, "permission": permission.to_json()}
    if options.out is None:
        finish(options, result, token)
        return
    write_atomic(options.out, token + "\n", SECRET_MODE)
    result |= {"token": None, "out": str(options.out)}
    rows = [
        ("Token", f"{options.out}: whoever has it may use the model"),
        ("Licensee", permission.licensee),
        ("Nonce", f"{permission.nonce}: revokes it"),
        ("Expires", shown_time(permission.expires_at)),
    ]
    finish(options, result, table(rows))
