"""oml-fast registry spend: mark keys that were revealed in some other way than a verification."""

from __future__ import annotations

import argparse
import re

from ..errors import InvalidArgumentError
from .common import finish, names
from .registry_common import SHORT, add_registry_option, add_set_option, open_registry

HELP = "mark keys as spent that were revealed by hand"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_set_option(parser, required=True, what="the keys' set")
    parser.add_argument("--numbers", required=True, metavar="LIST", help="of the keys, as in 0,4,10-19")
    parser.add_argument("--suspect", metavar="NAME", help="who has seen them (default: everyone)")
    add_registry_option(parser)


def run(options: argparse.Namespace) -> None:
    with open_registry(options) as registry:
        record = registry.find_set(options.set)
        numbers = _numbers(names(options.numbers), record.num_fingerprints)
        new = registry.spend(record.digest, numbers, suspect=options.suspect)
        result = {"registry": registry.name, "set_digest": record.digest, "marked": len(numbers), "newly_spent": new}
        text = f"{len(numbers)} keys of the set {record.digest[:SHORT]} are marked; {new} were not spent before."
        finish(options, result, text)


def _numbers(parts: tuple[str, ...], most: int) -> list[int]:
    """The numbers of a list of numbers and ranges, each once, and no more than the set has."""
    found: set[int] = set()
    for part in parts:
        found_range = re.fullmatch("([0-9]{1,9})(?:-([0-9]{1,9}))?", part)
        if found_range is None:
            raise InvalidArgumentError(f"--numbers: {part!r} is no number and no range: write them as in 0,4,10-19.")
        low, high = int(found_range[1]), int(found_range[2] or found_range[1])
        if not low <= high < low + most:
            raise InvalidArgumentError(f"--numbers: {part!r} is no range of keys of this set, which has {most}.")
        found.update(range(low, high + 1))
    return sorted(found)
