"""oml-fast registry verifications: every attempt, or one with its keys' numbers and its report."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ..errors import InvalidArgumentError
from .common import finish, table
from .registry_common import SHORT, add_registry_option, add_set_option, chosen_set, columns, open_registry, plain

HELP = "list the verifications, or show one"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_set_option(parser)
    parser.add_argument("--suspect", metavar="NAME", help="only those of this suspect")
    parser.add_argument("--attempt", metavar="ID", help="show this one, with its keys' numbers and its report")
    add_registry_option(parser)


def run(options: argparse.Namespace) -> None:
    if options.attempt is not None and (options.set is not None or options.suspect is not None):
        raise InvalidArgumentError("--attempt shows one verification: leave out --set and --suspect.")
    if options.attempt is not None:
        _show(options)
        return
    with open_registry(options) as registry:
        found = registry.verifications(set_digest=chosen_set(registry, options), suspect=options.suspect)
        rows = [(r.id, r.started_at, r.set_digest[:SHORT], r.keys, r.verdict or "not ended", r.suspect) for r in found]
        text = columns(("attempt", "started", "set", "keys", "verdict", "suspect"), rows, "No verifications.")
        finish(options, {"registry": registry.name, "verifications": plain(found)}, text)


def _show(options: argparse.Namespace) -> None:
    with open_registry(options) as registry:
        record, numbers, report = registry.verification(options.attempt)
        shown = {**asdict(record), "keys": ", ".join(str(number) for number in numbers) or None}
        text = table([(name.replace("_", " "), "-" if value is None else str(value)) for name, value in shown.items()])
        result = {**asdict(record), "numbers": list(numbers), "report": report}
        finish(options, {"registry": registry.name, **result}, text)
