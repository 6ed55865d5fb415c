"""oml-fast identify: which licensee's set is in this model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import finish
from .many import load_sets, many_text
from .suspects import add_suspect_options, suspect, suspect_name
from .terms import add_terms, terms_of

if TYPE_CHECKING:
    from ..fingerprint import FingerprintSet

HELP = "find which of many sets, one for each licensee, is in a suspect model"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sets", type=Path, required=True, metavar="FOLDER", help="the sets: each file or folder in it"
    )
    add_suspect_options(parser)
    add_terms(parser)
    parser.add_argument("--suspect", metavar="NAME", help="what to call the suspect (default: what is asked)")
    parser.add_argument(
        "--registry", metavar="PATH", help="tells whose each set is (default: what OML_FAST_REGISTRY names)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result here, as JSON")


def run(options: argparse.Namespace) -> None:
    from ..files import require_writable, write_json
    from ..verify import match_rule, verify_many

    sets = _by_licensee(options, load_sets(options.sets))
    if options.out:
        require_writable(options.out)
    terms = terms_of(options, None)
    name = suspect_name(options)
    found = verify_many(
        {name: lambda: suspect(options, sets.values())}, sets, rule=match_rule(terms.pop("rule")), **terms
    )
    result: dict[str, Any] = {"identified": found.matches(name), "reason": found.reason(name), **found.to_json()}
    if options.out:
        write_json(options.out, result)
    finish(options, result, many_text(found))


def _by_licensee(options: argparse.Namespace, sets: dict[str, FingerprintSet]) -> dict[str, FingerprintSet]:
    """The sets under their licensees' names, as far as the registry knows them."""
    from .. import settings

    named = options.registry or settings.registry_url()
    if not named:
        return sets
    from ..registry import Registry

    with Registry(named) as registry:
        licensees = {record.digest: record.licensee for record in registry.sets()}
    found = {}
    for name, made in sets.items():
        licensee = licensees.get(made.digest())
        found[f"{licensee} ({name})" if licensee else name] = made
    return found
