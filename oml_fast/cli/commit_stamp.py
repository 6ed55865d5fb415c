"""oml-fast commit stamp: have authorities timestamp a commitment, over the network or through files."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InvalidArgumentError
from .commit_make import TIMESTAMP_HELP, stamp
from .common import finish, table

HELP = "have authorities timestamp a commitment (RFC 3161)"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--commitment", type=Path, required=True, metavar="FILE", help="what commit make wrote")
    parser.add_argument("--timestamp", action="append", metavar="URL", help=TIMESTAMP_HELP)
    parser.add_argument(
        "--timestamp-request", type=Path, metavar="FILE", help="write a request (DER), to be sent from elsewhere"
    )
    parser.add_argument(
        "--timestamp-response", action="append", type=Path, metavar="FILE", help="keep this answer (DER); repeatable"
    )


def run(options: argparse.Namespace) -> None:
    from ..commit import Commitment, add_token, read_tokens, require_answer, timestamp_request, tokens_path
    from ..files import write_atomic

    urls, responses = options.timestamp or [], options.timestamp_response or []
    if not urls and not responses and not options.timestamp_request:
        raise InvalidArgumentError("nothing to do: give --timestamp, --timestamp-request or --timestamp-response.")
    commitment = Commitment.load(options.commitment)
    kept = tokens_path(options.commitment)
    for path in responses:
        der = _read(path)
        require_answer(commitment, der)
        add_token(kept, der)
    stamp(options.commitment, urls)
    if options.timestamp_request:
        write_atomic(options.timestamp_request, timestamp_request(commitment).as_bytes())
    result = {
        "digest": commitment.digest(),
        "timestamps": len(read_tokens(kept)),
        "timestamps_file": str(kept),
        "timestamp_request": str(options.timestamp_request) if options.timestamp_request else None,
    }
    rows = [("Digest", commitment.digest()), ("Timestamps", f"{result['timestamps']} in {kept}")]
    if options.timestamp_request:
        rows.append(("Request", f"{options.timestamp_request}: keep the answer with --timestamp-response"))
    finish(options, result, table(rows))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"cannot read the answer {path}: {error.strerror}.") from error
