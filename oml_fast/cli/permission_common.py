"""What the permission commands share: keys with their passphrases, the model, the store, the request."""

from __future__ import annotations

import argparse
import hashlib
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InvalidArgumentError
from .commit_make import chosen_model_digest
from .keygen import load_signing_key

if TYPE_CHECKING:
    from ..permission import Request, Store
    from ..signing import SigningKey

DAYS_HELP = "until the list expires (default: 30)"
OWNER_HELP = "file with the owner key's passphrase, for you alone"


def add_list_options(parser: argparse.ArgumentParser) -> None:
    """The options of a command that makes the next version of the list of keys."""
    parser.add_argument("--keys", type=Path, required=True, metavar="FILE", help="the owner's list of keys")
    parser.add_argument(
        "--owner-key", type=Path, required=True, metavar="FILE", help="the owner's signing key, which signs the list"
    )
    add_owner_options(parser)


def add_owner_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--owner-passphrase-file", type=Path, metavar="FILE", help=OWNER_HELP)
    parser.add_argument("--days", type=float, default=30, help=DAYS_HELP)


def signing_key(path: Path, passphrase_file: Path | None) -> SigningKey:
    """The signing key in a file. Its passphrase: from the file named, the environment, or asked for."""
    from ..signing import read_signing_key

    if passphrase_file is None:
        return load_signing_key(path)
    return read_signing_key(path, read_passphrase(passphrase_file))


def read_passphrase(path: Path) -> str:
    """The one line of a file that nobody else can read."""
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            passphrase = file.read(4096).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"cannot read the passphrase in {path}: name a file with one line.") from error
    if mode & 0o077:
        raise InvalidArgumentError(f"{path} can be read by others (mode {mode:04o}): chmod 600 {path}")
    if not passphrase or "\n" in passphrase:
        raise InvalidArgumentError(f"{path} does not hold one line: write the passphrase, and nothing else, into it.")
    return passphrase


def one_model(options: argparse.Namespace) -> str:
    """The digest of the model that `--model` or `--model-digest` names."""
    digest = chosen_model_digest(options)
    if digest is None:
        raise InvalidArgumentError("which model? Name its folder with --model, or its --model-digest.")
    return digest


def body_digest(path: Path | None) -> str | None:
    try:
        return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InvalidArgumentError(f"cannot read the body {path}: {error.strerror}.") from error


def seconds(text: str | None, option: str) -> int | None:
    """Seconds since 1970 of a time as 2026-01-31 or 2026-01-31T12:00Z."""
    try:
        time = None if text is None else datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidArgumentError(f"{option} {text!r}: write it as 2026-01-31 or 2026-01-31T12:00Z.") from error
    return None if time is None else int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp())


def shown_time(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def read_token_file(path: Path) -> str:
    """The token in a file, or on standard input where the file is "-"."""
    import sys

    from ..files import read_text
    from ..permission import MOST_CHARACTERS

    if str(path) == "-":
        return sys.stdin.read(MOST_CHARACTERS + 2).strip()
    return read_text(path, "the token").strip()


def open_store(where: str) -> Store:
    """The store at a path (SQLite) or a registry's URL (PostgreSQL). It must be there already."""
    from ..permission import SqliteStore
    from ..registry import PermissionStore

    if "://" in where:
        return PermissionStore(where)
    if not Path(where).expanduser().is_file():
        raise InvalidArgumentError(f"there is no store at {where}: name the server's.")
    return SqliteStore(where)


def request(options: argparse.Namespace, model: str) -> Request:
    from ..permission import Request

    return Request(model, options.path, body_digest(options.body), options.requests, options.output_tokens)
