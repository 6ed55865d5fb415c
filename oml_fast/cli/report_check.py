"""oml-fast report check: is a report whole, and does its verdict follow from what it holds?"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .common import add_device_options, finish, load_model, prepare

if TYPE_CHECKING:
    from ..completer import Completer

HELP = "check a report that somebody hands over: signature, figures, commitment, opened keys"
_MARKS = {True: "holds", False: "FAILS", None: "not shown"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", type=Path, required=True, metavar="FILE", help="the report")
    parser.add_argument(
        "--opening", type=Path, metavar="FILE", help="its opening: compute the verdict from the answers"
    )
    parser.add_argument("--verification-key", type=Path, metavar="FILE", help="the owner's, had from elsewhere")
    parser.add_argument(
        "--timestamp-root", type=Path, action="append", metavar="PEM", help="trusted root of a timestamp authority"
    )
    parser.add_argument(
        "--null-model",
        type=Path,
        action="append",
        metavar="FOLDER",
        help="a model that was never fingerprinted: ask it the opened keys",
    )
    add_device_options(parser)


def run(options: argparse.Namespace) -> None:
    from .. import report
    from ..commit import read_roots
    from ..errors import InvalidArgumentError, OmlError
    from ..files import read_text
    from ..signing import parse_json, read_verification_key

    trusted = read_verification_key(options.verification_key) if options.verification_key else None
    roots = [root for path in options.timestamp_root or () for root in read_roots(path)]
    document = parse_json(read_text(options.report, "the report"), f"the report {options.report}")
    opening = report.load_opening(options.opening) if options.opening else None
    if options.null_model and not options.opening:
        raise InvalidArgumentError("--null-model asks the opened keys: give --opening FILE, too.")
    findings = report.check(document, opening, trusted, roots, _null_models(options))
    lines = [f"{_MARKS[each.ok]:<10} {each.what + ':':<13}{each.sentence}" for each in findings]
    finish(options, {"ok": findings.ok, "findings": [asdict(each) for each in findings]}, "\n".join(lines))
    if not findings.ok:
        failed = ", ".join(each.what for each in findings if each.ok is False)
        raise OmlError(f"{options.report} fails its check ({failed}): trust nothing in it; ask its owner for another.")


def _null_models(options: argparse.Namespace) -> dict[str, Completer]:
    if not options.null_model:
        return {}
    from ..models import HfCompleter

    prepare()
    return {str(folder): HfCompleter(load_model(options, folder)) for folder in options.null_model}
