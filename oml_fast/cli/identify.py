"""oml-fast identify: which licensee's set is in this model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import finish
from .many import load_sets, many_text, verify_pairs
from .suspects import add_suspect_options, suspect, suspect_name
from .terms import REUSE, add_terms

if TYPE_CHECKING:
    from ..fingerprint import FingerprintSet
    from ..verify import Verifications

HELP = "find which of many sets, one for each licensee, is in a suspect model"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sets", type=Path, required=True, metavar="FOLDER", help="the sets: each file or folder in it"
    )
    add_suspect_options(parser)
    add_terms(parser)
    parser.add_argument(
        "--suspect", metavar="NAME", help="what to call the suspect (default: its folder, or model at URL)"
    )
    parser.add_argument(
        "--registry", metavar="PATH", help="draw keys from it; whose sets are (default: what OML_FAST_REGISTRY names)"
    )
    parser.add_argument(
        "--ask-again", choices=REUSE, default="never", help="keys that are spent, in the registry (default: never)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the result here, as JSON, and the answers beside it"
    )


def run(options: argparse.Namespace) -> None:
    sets = _by_licensee(options, load_sets(options.sets))
    name = suspect_name(options)

    def result(found: Verifications) -> dict[str, Any]:
        return {"identified": found.matches(name), "reason": found.reason(name), **found.to_json()}

    found = verify_pairs(options, {name: lambda: suspect(options, sets.values())}, sets, result)
    finish(options, result(found), many_text(found))


def _by_licensee(options: argparse.Namespace, sets: dict[str, FingerprintSet]) -> dict[str, FingerprintSet]:
    """The sets under their licensees' names, as far as the registry knows them."""
    from .. import settings

    named = options.registry or settings.registry_url()
    if not named:
        return sets
    from ..registry import Registry

    with Registry(named, create=False) as registry:
        licensees = {record.digest: record.licensee for record in registry.sets()}
    found = {}
    for name, made in sets.items():
        licensee = licensees.get(made.digest())
        found[f"{licensee} ({name})" if licensee else name] = made
    return found
