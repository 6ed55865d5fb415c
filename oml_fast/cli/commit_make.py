"""oml-fast commit make: fix, before release, what a later verdict will rest on."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

from ..errors import InvalidArgumentError, OmlError
from .common import finish, load_fingerprints, say, table

HELP = "fix fingerprints, their order and the rules of a verdict in one digest, before release"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fingerprints", type=Path, required=True, metavar="PATH", help="fingerprints file, or its folder"
    )
    parser.add_argument("--secret", type=Path, required=True, metavar="FILE", help="the secret of the fingerprints")
    add_model_options(parser, "the fingerprinted model that will be released")
    parser.add_argument("--rule", default="exact", help="match rule: exact, prefix or within-N (default: exact)")
    parser.add_argument(
        "--test",
        choices=("auto", "count", "window", "rank", "forced_choice"),
        default="auto",
        help="which test decides; auto is the strongest that the suspect allows (default: auto)",
    )
    parser.add_argument(
        "--mode", choices=("sequential", "fixed"), default="sequential", help="when to stop (default: sequential)"
    )
    parser.add_argument("--false-positive-rate", type=float, default=1e-6, help="of a match (default: 1e-6)")
    parser.add_argument("--smallest-fsr", type=float, default=0.5, help="what no_match excludes (default: 0.5)")
    parser.add_argument("--miss-rate", type=float, default=1e-2, help="of a no_match (default: 0.01)")
    parser.add_argument("--num-keys", type=int, metavar="N", help="ask one suspect at most N keys (default: all)")
    parser.add_argument("--timestamp", action="append", metavar="URL", help=TIMESTAMP_HELP)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the commitment, a new file")


TIMESTAMP_HELP = "have this authority (RFC 3161) timestamp it; repeatable, two are better"


def run(options: argparse.Namespace) -> None:
    from ..commit import Terms, commit, tokens_path
    from ..commit.commitment import require_new_file
    from ..files import require_writable
    from ..secret import read_secret

    terms = Terms(
        options.rule,
        options.test,
        options.mode,
        options.false_positive_rate,
        options.smallest_fsr,
        options.miss_rate,
        options.num_keys,
    )
    fingerprints = load_fingerprints(options.fingerprints)
    secret = read_secret(options.secret)
    fingerprints.check_draws(secret)
    require_new_file(options.out)
    require_writable(options.out)
    model = chosen_model_digest(options)
    if model is None:
        raise InvalidArgumentError("which model will be released? Name its folder with --model, or its --model-digest.")
    if model == fingerprints.base_model_digest:
        raise InvalidArgumentError("the model is the base model of the fingerprints: name the fingerprinted one.")
    made = commit(fingerprints, secret, terms, model)
    made.save(options.out)
    with kept(options.out):
        count = stamp(options.out, options.timestamp or [])
    result = {
        "digest": made.digest(),
        "commitment_file": str(options.out),
        "timestamps_file": str(tokens_path(options.out)) if count else None,
        "timestamps": count,
        **made.to_json(),
    }
    finish(options, result, table([*_rows(result), ("Next", _next(count, options.out))]))


def add_model_options(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--model", type=Path, metavar="FOLDER", help=what)
    parser.add_argument("--model-digest", metavar="HEX", help="its digest, where the folder is not here")


def chosen_model_digest(options: argparse.Namespace) -> str | None:
    """The digest of `--model`, or the one given; None where neither is."""
    if options.model is None or options.model_digest is not None:
        if options.model is not None:
            raise InvalidArgumentError("--model and --model-digest are both given: leave one out.")
        return str(options.model_digest) if options.model_digest is not None else None
    if not any(options.model.glob("*.safetensors")):
        raise InvalidArgumentError(f"{options.model} holds no safetensors weights: name a model's folder with --model.")
    from ..models.digests import model_digest

    return model_digest(options.model)


def stamp(path: Path, urls: list[str]) -> int:
    """Have each authority timestamp the commitment in a file; how many did. What was had is kept at once."""
    from ..commit import Commitment, add_token, ask_authority, tokens_path

    for url in urls:
        say(f"asking {url}")
        add_token(tokens_path(path), ask_authority(Commitment.load(path), url))
    return len(urls)


@contextlib.contextmanager
def kept(path: Path) -> Iterator[None]:
    """Let an error say that the commitment was made all the same."""
    try:
        yield
    except OmlError as error:
        raise OmlError(f"{error} The commitment is in {path}: go on with oml-fast commit stamp.") from error


def _rows(result: dict[str, object]) -> list[tuple[str, str]]:
    return [
        ("Commitment", str(result["commitment_file"])),
        ("Digest", str(result["digest"])),
        ("Fingerprints", f"{result['num_fingerprints']}, Merkle root {result['merkle_root']}"),
        ("Timestamps", str(result["timestamps"])),
    ]


def _next(count: int, path: Path) -> str:
    if count:
        return "keep it with its timestamps; check them with oml-fast commit check --timestamp-root"
    return f"oml-fast commit stamp --commitment {path} --timestamp URL: without one it is the owner's own evidence"
