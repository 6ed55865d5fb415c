"""Many suspects and many sets, for `verify` and `identify`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgumentError
from .attempts import answers_path, attempt_of
from .common import load_fingerprints
from .suspects import loaders, read_suspects, suspect, suspect_name
from .terms import terms_of

if TYPE_CHECKING:
    from ..completer import Completer
    from ..fingerprint import FingerprintSet
    from ..verify import Verification, Verifications

# What is of one pair, and not of many.
_OF_ONE = ("secret", "commitment", "timestamp_root", "suspect_since", "null_model", "html", "signing_key")


def make_many(options: argparse.Namespace) -> Verifications:
    """Every suspect of `--suspects`, or the one named, against every set of `--sets`, or the one named."""
    for name in _OF_ONE:
        if getattr(options, name):
            raise InvalidArgumentError(
                f"--{name.replace('_', '-')} goes with one suspect and one set: verify that pair by itself."
            )
    if options.sets is None and options.fingerprints is None:
        raise InvalidArgumentError("name the sets with --sets FOLDER, or one with --fingerprints PATH.")
    if options.sets:
        sets = load_sets(options.sets)
    else:
        sets = {set_name(options.fingerprints): load_fingerprints(options.fingerprints)}
    if options.suspects:
        return verify_pairs(options, loaders(read_suspects(options.suspects, options), sets), sets)
    return verify_pairs(options, {suspect_name(options): lambda: suspect(options, sets.values())}, sets)


def verify_pairs(
    options: argparse.Namespace,
    suspects: Mapping[str, Callable[[], Completer]],
    sets: Mapping[str, FingerprintSet],
    result: Callable[[Verifications], dict[str, Any]] | None = None,
) -> Verifications:
    """Verify every pair; with `--out`, write the result there and keep each pair's answers beside it.

    With a registry, every pair is an attempt of its own. Killed at any moment, the same command goes on.
    """
    from ..files import require_writable, write_json
    from ..verify import match_rule, verify, verify_many
    from ..verify.journal import Journal

    terms = terms_of(options, None, sets.values())
    rule = match_rule(terms.pop("rule"))
    if options.out:
        require_writable(options.out)
    places = {pair: place for place, pair in enumerate((s, name) for s in suspects for name in sets)}
    rate = terms.pop("false_positive_rate")

    def one(name: str, of_set: str, made: FingerprintSet, completer: Completer, its_rate: float) -> Verification:
        answers = answers_path(options.out, places[name, of_set]) if options.out else None
        with contextlib.ExitStack() as stack:
            attempt = attempt_of(stack, options, made, None, answers, name)
            journal = None if answers is None else stack.enter_context(Journal(answers))
            how = {**terms, "false_positive_rate": its_rate, "attempt": attempt, "journal": journal}
            return verify(made, completer, rule=rule, **how)

    found = verify_many(suspects, sets, false_positive_rate=rate, verify_pair=one)
    if options.out:
        write_json(options.out, found.to_json() if result is None else result(found))
    return found


def many_text(found: Verifications) -> str:
    """What was found in each suspect, and a line for each of its sets, the surest first."""
    from ..verify import chance

    lines = []
    for name in dict.fromkeys(pair.suspect for pair in found.pairs):
        lines += [f"{name}: {found.reason(name)}"]
        own = sorted((pair for pair in found.pairs if pair.suspect == name), key=lambda pair: pair.log10_adjusted_p)
        for pair in own:
            v = pair.verification
            by_chance = chance(pair.log10_adjusted_p)
            lines.append(f"  {pair.verdict:<13}{pair.set_name}  {v.matches} of {v.queried} keys, by chance {by_chance}")
    return "\n".join([*lines, "", "Probabilities are Holm's, over all pairs. Every key asked is spent."])


def load_sets(folder: Path) -> dict[str, FingerprintSet]:
    """Every set in a folder, by name: NAME.json, or NAME/fingerprints.json. Raises InvalidArgumentError."""
    if (folder / "fingerprints.json").is_file():
        raise InvalidArgumentError(f"{folder} is a set itself: name the folder that holds it and others.")
    found = {path.stem: path for path in sorted(folder.glob("*.json")) if _holds_fingerprints(path)}
    found |= {path.parent.name: path for path in sorted(folder.glob("*/fingerprints.json"))}
    if not found:
        raise InvalidArgumentError(f"{folder} holds no fingerprint set: NAME.json or NAME/fingerprints.json.")
    return {name: load_fingerprints(path) for name, path in found.items()}


def set_name(path: Path) -> str:
    """What the set's file, or the folder that holds it, is called."""
    file = path / "fingerprints.json" if path.is_dir() else path
    return file.resolve().parent.name if file.name == "fingerprints.json" else file.stem


def _holds_fingerprints(path: Path) -> bool:
    """Whether a JSON file is meant to be a set, and no report or result of another command."""
    return '"fingerprints"' in path.read_text(encoding="utf-8", errors="replace")
