"""oml-fast registry add-set: record a fingerprint set, for a licensee before it is embedded."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InvalidArgumentError
from ..files import read_text
from .common import finish, load_fingerprints
from .registry_common import SHORT, add_registry_option, open_registry

if TYPE_CHECKING:
    from ..fingerprint import FingerprintSet

HELP = "record a fingerprint set, for a licensee before it is embedded"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fingerprints", type=Path, required=True, metavar="PATH", help="fingerprints file, or its folder"
    )
    parser.add_argument("--licensee", metavar="NAME", help="who will hold the model with this set")
    parser.add_argument(
        "--secret", type=Path, metavar="FILE", help="the set's: ask in the order that a commitment to it has"
    )
    parser.add_argument(
        "--order", type=Path, metavar="FILE", help="JSON list of all its numbers, in any other order of asking"
    )
    add_registry_option(parser)


def run(options: argparse.Namespace) -> None:
    fingerprints = load_fingerprints(options.fingerprints)
    order = _order(options, fingerprints)
    with open_registry(options, create=True) as registry:
        record = registry.add_set(fingerprints, licensee=options.licensee, order=order)
        whose = f" of {record.licensee}" if record.licensee else ""
        text = f"The set {record.digest[:SHORT]}{whose} is recorded, with {record.num_fingerprints} keys."
        finish(options, {"registry": registry.name, **asdict(record)}, text)


def _order(options: argparse.Namespace, fingerprints: FingerprintSet) -> Sequence[int] | None:
    """The order of asking: a commitment's, where the secret is given, or the one in a file; None where neither is."""
    if options.secret is None:
        return None if options.order is None else _read_order(options.order)
    if options.order is not None:
        raise InvalidArgumentError("--secret and --order both give an order of asking: leave one out.")
    from ..commit import asking_order
    from ..secret import read_secret

    secret = read_secret(options.secret)
    fingerprints.require_secret(secret)
    return asking_order(fingerprints, secret)


def _read_order(path: Path) -> list[int]:
    """A JSON list of whole numbers, or an object that has one under "order"."""
    try:
        value = json.loads(read_text(path, "the order of asking"))
    except (json.JSONDecodeError, RecursionError):
        value = None
    if isinstance(value, dict):
        value = value.get("order")
    if not isinstance(value, list) or not all(type(number) is int for number in value):
        raise InvalidArgumentError(f"{path} holds no order of asking: write a JSON list of the set's numbers.")
    return value
