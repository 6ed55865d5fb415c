"""The terms of a verdict: what `verify` and `identify` share, and what a commitment fixes."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgumentError

if TYPE_CHECKING:
    from ..commit import Commitment
    from ..fingerprint import FingerprintSet

REUSE = ("never", "other_suspects", "any")
TESTS = ("auto", "rank", "forced_choice", "window", "count")
# What a commitment fixes; without one, these.
TERMS = {
    "rule": "exact",
    "test": "auto",
    "mode": "sequential",
    "false_positive_rate": 1e-6,
    "smallest_fsr": 0.5,
    "miss_rate": 1e-2,
    "num_keys": None,
}


def add_terms(parser: argparse.ArgumentParser) -> None:
    """The terms of a verdict. Their defaults are in TERMS, so that a commitment knows what was given."""
    parser.add_argument(
        "--num-keys", type=int, metavar="N", help="ask at most N keys; all N with --mode fixed (default: all)"
    )
    parser.add_argument("--test", choices=TESTS, help="which evidence decides (default: the strongest there is)")
    parser.add_argument("--rule", help="match rule: exact, prefix or within-N (default: exact)")
    parser.add_argument(
        "--mode",
        choices=("sequential", "fixed"),
        help="stop when the evidence is enough, or ask N (default: sequential)",
    )
    parser.add_argument("--false-positive-rate", type=float, help="of a match (default: 1e-6)")
    parser.add_argument("--smallest-fsr", type=float, help="what no_match excludes (default: 0.5)")
    parser.add_argument("--miss-rate", type=float, help="of a no_match (default: 0.01)")


def terms_of(
    options: argparse.Namespace, commitment: Commitment | None, sets: Iterable[FingerprintSet]
) -> dict[str, Any]:
    """The terms given, committed or default. An option that a commitment fixes otherwise is refused.

    So are rates that are none, and more keys than one of the sets has: before a suspect is loaded.
    """
    from ..verify.verdict import Limits
    from ..verify.verification import require_count

    given = {name: getattr(options, name) for name in TERMS}
    fixed: Mapping[str, Any] = TERMS
    if commitment is not None:
        told = commitment.to_json()["terms"]
        fixed = {"rule": told["match_rule"], **{name: told[name] for name in TERMS if name != "rule"}}
        for name, value in given.items():
            if value is not None and value != fixed[name]:
                raise InvalidArgumentError(
                    f"--{name.replace('_', '-')} {value}: the commitment fixes {fixed[name]}. Leave the option out, or "
                    "verify without --commitment."
                )
    terms = {name: fixed[name] if value is None else value for name, value in given.items()}
    Limits(terms["false_positive_rate"], terms["smallest_fsr"], terms["miss_rate"])
    for fingerprints in sets:
        require_count(fingerprints, terms["num_keys"])
    return terms
