"""oml-fast report show: a report as text, or as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import finish, load_fingerprints

HELP = "show a report as text, or write it as one HTML page"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", type=Path, required=True, metavar="FILE", help="report that verify --out wrote")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page here")
    parser.add_argument("--show-keys", action="store_true", help="on the page, show keys and responses: it is secret")
    parser.add_argument("--fingerprints", type=Path, metavar="PATH", help="the set, or its folder, for --show-keys")


def run(options: argparse.Namespace) -> None:
    from .. import report
    from ..errors import InvalidArgumentError

    if options.show_keys and not (options.fingerprints and options.html):
        raise InvalidArgumentError("--show-keys needs --html FILE and --fingerprints PATH.")
    document = report.load(options.report)
    failed = [finding for finding in report.check(document) if finding.ok is False]
    if failed:
        raise InvalidArgumentError(
            f"{options.report} was edited or is damaged ({failed[0].what}: {failed[0].sentence.rstrip('.')}): see "
            "oml-fast report check, and ask its owner for the original."
        )
    if options.html:
        shown = load_fingerprints(options.fingerprints) if options.show_keys else None
        report.write_page(document, options.html, shown)
    finish(options, document, report.text(document))
