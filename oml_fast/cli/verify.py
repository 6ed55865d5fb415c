"""oml-fast verify: ask a suspect model some keys, and give a verdict with its error probability."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .common import add_device_options, finish, load_fingerprints, load_model, prepare

if TYPE_CHECKING:
    from ..verify import Verification

HELP = "ask a suspect model the keys of a set, and give a verdict"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="the suspect model")
    parser.add_argument(
        "--fingerprints", type=Path, required=True, metavar="PATH", help="fingerprints file, or its folder"
    )
    parser.add_argument("--secret", type=Path, metavar="FILE", help="first prove that every response was drawn with it")
    parser.add_argument("--num-keys", type=int, metavar="N", help="ask only the first N keys (default: all)")
    parser.add_argument("--test", choices=("window", "count"), default="window", help="which p-value decides")
    parser.add_argument("--false-positive-rate", type=float, default=1e-6, help="of a match (default: 1e-6)")
    parser.add_argument("--smallest-fsr", type=float, default=0.5, help="what no_match excludes (default: 0.5)")
    parser.add_argument("--miss-rate", type=float, default=1e-2, help="of a no_match (default: 0.01)")
    parser.add_argument("--batch-size", type=int, default=64, help="keys a batch (default: 64)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON report here")
    add_device_options(parser)


def run(options: argparse.Namespace) -> None:
    from .. import report

    verification = make(options)
    finish(options, verification.to_json(), report.text(verification))


def make(options: argparse.Namespace) -> Verification:
    """Verify, and write the report where `--out` says."""
    from .. import report
    from ..secret import read_secret
    from ..verify import verify

    fingerprints = load_fingerprints(options.fingerprints)
    if options.secret:
        fingerprints.check_draws(read_secret(options.secret))
    prepare()
    from ..models import HfCompleter

    completer = HfCompleter(load_model(options, options.model), batch_size=options.batch_size, progress=True)
    verification = verify(
        fingerprints,
        completer,
        num_keys=options.num_keys,
        test=options.test,
        false_positive_rate=options.false_positive_rate,
        smallest_fsr=options.smallest_fsr,
        miss_rate=options.miss_rate,
    )
    if options.out:
        report.write(verification, options.out)
    return verification
