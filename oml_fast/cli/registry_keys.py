"""oml-fast registry keys: how many keys are left, by set."""

from __future__ import annotations

import argparse

from .common import finish
from .registry_common import SHORT, add_registry_option, columns, open_registry, plain

HELP = "say how many keys are left, by set"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suspect", metavar="NAME", help="also how many of them this suspect has seen")
    add_registry_option(parser)


def run(options: argparse.Namespace) -> None:
    with open_registry(options) as registry:
        found = registry.key_counts(suspect=options.suspect)
        head = ["set", "licensee", "keys", "left", "spent"]
        rows = [[r.set_digest[:SHORT], r.licensee, r.num_fingerprints, r.left, r.spent] for r in found]
        if options.suspect is not None:
            head.append("seen by it")
            rows = [[*row, record.seen] for row, record in zip(rows, found, strict=True)]
        result = {"registry": registry.name, "suspect": options.suspect, "sets": plain(found)}
        finish(options, result, columns(head, rows, "No sets."))
