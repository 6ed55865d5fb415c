"""oml-fast commit open: open the leaves of the keys that were asked, for a third party, and no others."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InvalidArgumentError
from .common import finish, load_fingerprints, names, table

HELP = "open the leaves of the keys that were asked, and no others"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--commitment", type=Path, required=True, metavar="FILE", help="what commit make wrote")
    parser.add_argument(
        "--fingerprints", type=Path, required=True, metavar="PATH", help="fingerprints file, or its folder"
    )
    parser.add_argument("--secret", type=Path, required=True, metavar="FILE", help="the secret of the fingerprints")
    parser.add_argument("--numbers", metavar="NUMBERS", help="numbers of the fingerprints asked: 7,12,3")
    parser.add_argument("--first", type=int, metavar="N", help="the first N in the order of asking")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the opening (mode 0600)")


def run(options: argparse.Namespace) -> None:
    from ..commit import Commitment, asking_order, open_leaves
    from ..files import require_writable
    from ..secret import read_secret

    if (options.numbers is None) == (options.first is None):
        raise InvalidArgumentError("which keys were asked? Give --numbers or --first, one of them.")
    commitment = Commitment.load(options.commitment)
    fingerprints = load_fingerprints(options.fingerprints)
    secret = read_secret(options.secret)
    require_writable(options.out)
    if options.first is not None:
        order = asking_order(fingerprints, secret)
        if not 1 <= options.first <= len(order):
            raise InvalidArgumentError(f"--first {options.first}: the set holds {len(order)}.")
        numbers = order[: options.first]
    else:
        numbers = _numbers(options.numbers)
    opening = open_leaves(commitment, fingerprints, secret, numbers)
    opening.save(options.out)
    result = {"commitment": opening.commitment, "opened": len(opening.leaves), "opening_file": str(options.out)}
    told = f"{result['opened']} of {commitment.num_fingerprints} leaves, in {options.out}: these keys are no secret now"
    finish(options, result, table([("Commitment", opening.commitment), ("Opened", told)]))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in names(text))
    except ValueError as error:
        raise InvalidArgumentError(f"--numbers {text!r}: give whole numbers with commas between.") from error
