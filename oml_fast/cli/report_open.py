"""oml-fast report open: what a third party needs to compute a report's verdict anew."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import finish, load_fingerprints, table

HELP = "open the keys and answers of a report, and no others, for a third party"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", type=Path, required=True, metavar="FILE", help="report made with a commitment")
    parser.add_argument(
        "--answers", type=Path, required=True, metavar="FILE", help="answers that verify kept beside it"
    )
    parser.add_argument(
        "--fingerprints", type=Path, required=True, metavar="PATH", help="fingerprints file, or its folder"
    )
    parser.add_argument("--secret", type=Path, required=True, metavar="FILE", help="the owner's secret")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="new file for the opening, mode 0600")


def run(options: argparse.Namespace) -> None:
    from .. import report
    from ..errors import InvalidArgumentError
    from ..secret import read_secret

    if options.out.exists():
        raise InvalidArgumentError(f"{options.out} already exists: choose another --out.")
    document = report.load(options.report)
    answers = report.read_answers(document, options.answers)
    fingerprints, secret = load_fingerprints(options.fingerprints), read_secret(options.secret)
    opening = report.open_report(document, fingerprints, secret, answers)
    report.write_opening(opening, options.out)
    result = {"keys": len(opening["leaves"]), "answers": len(opening["answers"]), "report": opening["report"]}
    rows = [
        ("opened", f"{result['keys']} keys and {result['answers']} answers, in {options.out}"),
        ("for", f"the report with the digest {result['report']}"),
        ("secret", "who has it knows these keys and responses; the others stay closed"),
    ]
    finish(options, result, table(rows))
