"""Many suspects and many sets, for `verify` and `identify`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InvalidArgumentError
from .common import load_fingerprints
from .suspects import loaders, read_suspects, suspect, suspect_name
from .terms import terms_of

if TYPE_CHECKING:
    from ..fingerprint import FingerprintSet
    from ..verify import Verifications


def make_many(options: argparse.Namespace) -> Verifications:
    """Every suspect of `--suspects`, or the one named, against every set of `--sets`, or the one named."""
    from ..verify import match_rule, verify_many

    for name in ("commitment", "registry", "null_model", "html", "signing_key"):
        if getattr(options, name):
            raise InvalidArgumentError(
                f"--{name.replace('_', '-')} goes with one suspect and one set: verify that pair by itself."
            )
    sets = load_sets(options.sets) if options.sets else {str(options.fingerprints): _one_set(options)}
    if options.suspects:
        suspects = loaders(read_suspects(options.suspects, options), sets)
    else:
        suspects = {suspect_name(options): lambda: suspect(options, sets.values())}
    terms = terms_of(options, None)
    found = verify_many(suspects, sets, rule=match_rule(terms.pop("rule")), **terms)
    if options.out:
        from ..files import write_json

        write_json(options.out, found.to_json())
    return found


def many_text(found: Verifications) -> str:
    """A line for each pair, then what was found in each suspect."""
    from ..verify import chance

    names = {pair.suspect: None for pair in found.pairs}
    lines = []
    for name in names:
        lines += [f"{name}: {found.reason(name)}"]
        for pair in (pair for pair in found.pairs if pair.suspect == name):
            v = pair.verification
            by_chance = chance(pair.log10_adjusted_p)
            lines.append(f"  {pair.verdict:<13}{pair.set_name}  {v.matches} of {v.queried} keys, by chance {by_chance}")
    return "\n".join([*lines, "", "Probabilities are Holm's, over all pairs. Every key asked is spent."])


def load_sets(folder: Path) -> dict[str, FingerprintSet]:
    """Every set in a folder, by name: NAME.json, or NAME/fingerprints.json. Raises InvalidArgumentError."""
    found = {path.stem: path for path in sorted(folder.glob("*.json"))}
    found |= {path.parent.name: path for path in sorted(folder.glob("*/fingerprints.json"))}
    if not found:
        raise InvalidArgumentError(f"{folder} holds no fingerprint set: NAME.json or NAME/fingerprints.json.")
    return {name: load_fingerprints(path) for name, path in found.items()}


def _one_set(options: argparse.Namespace) -> FingerprintSet:
    if options.fingerprints is None:
        raise InvalidArgumentError("name the sets with --sets FOLDER, or one with --fingerprints PATH.")
    made = load_fingerprints(options.fingerprints)
    if options.secret is not None:
        from ..secret import read_secret

        made.check_draws(read_secret(options.secret))
    return made
