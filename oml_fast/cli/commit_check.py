"""oml-fast commit check: hold a commitment against set and secret, an opening, a model and its timestamps."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgumentError
from .commit_make import add_model_options, chosen_model_digest
from .common import finish, load_fingerprints, table

if TYPE_CHECKING:
    from ..commit import Commitment, TimeStamp

HELP = "hold a commitment against its set and secret, an opening, a model and its timestamps"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--commitment", type=Path, required=True, metavar="FILE", help="what commit make wrote")
    parser.add_argument("--fingerprints", type=Path, metavar="PATH", help="fingerprints file, or its folder")
    parser.add_argument("--secret", type=Path, metavar="FILE", help="the secret of the fingerprints")
    parser.add_argument("--opening", type=Path, metavar="FILE", help="what commit open wrote; needs no set or secret")
    add_model_options(parser, "the model that was released")
    parser.add_argument(
        "--timestamps", type=Path, metavar="FILE", help="its timestamps (default: those beside the commitment)"
    )
    parser.add_argument(
        "--timestamp-root", action="append", type=Path, metavar="PEM", help="trusted root of an authority; repeatable"
    )
    parser.add_argument(
        "--suspect-since", metavar="TIME", help="when the suspect first existed, as 2026-01-31 or 2026-01-31T12:00Z"
    )


def run(options: argparse.Namespace) -> None:
    from ..commit import Commitment, evidence_kind

    since = _time(options.suspect_since) if options.suspect_since else None
    commitment = Commitment.load(options.commitment)
    checked = _against_set(options, commitment)
    opened = _opened(options, commitment)
    stamps, unchecked = _timestamps(options, commitment)
    result = {
        "digest": commitment.digest(),
        "set_checked": checked,
        "model_checked": _against_model(options, commitment),
        "opened": opened,
        "timestamps": [stamp.to_json() for stamp in stamps],
        "timestamps_unchecked": unchecked,
        "evidence": evidence_kind(stamps, since),
        "commitment": commitment.to_json(),
    }
    finish(options, result, text(result))


def text(result: dict[str, Any]) -> str:
    """The outcome in a few lines. Whatever does not hold was an error before."""
    rows = [
        ("Digest", result["digest"]),
        ("Set and secret", "as committed" if result["set_checked"] else "not checked: name both"),
        ("Model", "as committed" if result["model_checked"] else "not checked: name it"),
    ]
    if result["opened"] is not None:
        places = result["opened"]["places"]
        gaps = places[-1] + 1 - len(places)
        rows.append(("Opened", f"{len(places)} leaves as committed; {gaps} places before the last one not opened"))
    rows += [("Timestamp", f"{stamp['time']} by {stamp['authority']}") for stamp in result["timestamps"]]
    if result["timestamps_unchecked"]:
        rows.append(("Timestamps", f"{result['timestamps_unchecked']} not checked: name roots (--timestamp-root)"))
    return table([*rows, ("Evidence", result["evidence"])])


def _against_set(options: argparse.Namespace, commitment: Commitment) -> bool:
    from ..commit import require_commitment
    from ..secret import read_secret

    if (options.fingerprints is None) != (options.secret is None):
        raise InvalidArgumentError("--fingerprints and --secret belong together: give both, or neither.")
    if options.secret is None:
        return False
    require_commitment(commitment, load_fingerprints(options.fingerprints), read_secret(options.secret))
    return True


def _against_model(options: argparse.Namespace, commitment: Commitment) -> bool:
    from ..commit import CommitmentError

    digest = chosen_model_digest(options)
    if digest is not None and digest != commitment.model_digest:
        raise CommitmentError(f"the commitment is to the model {commitment.model_digest}, and this one is {digest}.")
    return digest is not None


def _opened(options: argparse.Namespace, commitment: Commitment) -> dict[str, Any] | None:
    from ..commit import Opening, check_opening

    if options.opening is None:
        return None
    found = check_opening(commitment, Opening.load(options.opening))
    return {"places": list(found), "numbers": [fingerprint.number for fingerprint in found.values()]}


def _timestamps(options: argparse.Namespace, commitment: Commitment) -> tuple[list[TimeStamp], int]:
    """The timestamps that hold, and how many there are besides because no root certificate is given."""
    from ..commit import check_timestamps, read_roots, read_tokens, tokens_path

    if options.timestamps is not None and not options.timestamps.exists():
        raise InvalidArgumentError(f"no timestamps at {options.timestamps}: name the file with --timestamps.")
    tokens = read_tokens(options.timestamps or tokens_path(options.commitment))
    roots = [root for path in options.timestamp_root or [] for root in read_roots(path)]
    return (check_timestamps(commitment, tokens, roots), 0) if roots else ([], len(tokens))


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidArgumentError(f"--suspect-since {text!r}: write it as 2026-01-31 or 2026-01-31T12:00Z.") from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)
