"""oml-fast fingerprints export: a set as the JSON list that [SF] publishes."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import finish, load_fingerprints, table

HELP = "write a set in the published JSON format, and say what is lost"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fingerprints", type=Path, required=True, metavar="PATH", help="fingerprints file, or its folder"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="new JSON file, as secret as the set")
    parser.add_argument("--format", choices=("raw", "chat"), help="which asking to write (default: the set's first)")


def run(options: argparse.Namespace) -> None:
    from ..errors import InvalidArgumentError
    from ..files import SECRET_MODE, write_json
    from ..interchange import export_published

    if options.out.exists():
        raise InvalidArgumentError(f"{options.out} already exists: choose another --out.")
    exported = export_published(load_fingerprints(options.fingerprints), options.format)
    write_json(options.out, exported.entries, SECRET_MODE)
    result = {"num_fingerprints": len(exported.entries), "format": exported.format, "lost": list(exported.lost)}
    rows = [("fingerprints", f"{len(exported.entries)} in {options.out}"), ("asked", exported.format)]
    finish(options, result, table([*rows, *(("lost", words) for words in exported.lost)]))
