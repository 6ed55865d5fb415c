"""oml-fast verify: ask a suspect model some keys, and give a verdict with its error probability."""

from __future__ import annotations

import argparse
import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgumentError, OmlError
from .attempts import answers_path, attempt_of
from .common import finish, load_fingerprints, load_model, say
from .many import make_many, many_text, set_name
from .suspects import add_suspect_options, suspect, suspect_name
from .terms import REUSE, add_terms, terms_of

if TYPE_CHECKING:
    from ..commit import Commitment, TimeStamp
    from ..fingerprint import FingerprintSet
    from ..signing import SigningKey
    from ..verify import Verification
    from ..verify.calibration import Calibration

HELP = "ask a suspect model keys of a set, and give a verdict"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fingerprints", type=Path, metavar="PATH", help="fingerprints file, or its folder")
    add_suspect_options(parser)
    add_terms(parser)
    parser.add_argument("--secret", type=Path, metavar="FILE", help="first prove that every response was drawn with it")
    parser.add_argument(
        "--commitment", type=Path, metavar="FILE", help="follow its order of keys and its terms (needs --secret)"
    )
    parser.add_argument(
        "--timestamp-root", type=Path, action="append", metavar="PEM", help="trusted root of a timestamp authority"
    )
    parser.add_argument(
        "--suspect", metavar="NAME", help="what to call the suspect (default: its folder, or model at URL)"
    )
    parser.add_argument("--suspect-since", metavar="DATE", help="when the suspect was first seen, as 2026-01-31")
    parser.add_argument(
        "--registry", metavar="PATH", help="draw keys from it, and record them (default: what OML_FAST_REGISTRY names)"
    )
    parser.add_argument(
        "--ask-again", choices=REUSE, default="never", help="keys that are spent, in the registry (default: never)"
    )
    parser.add_argument(
        "--null-model", type=Path, action="append", metavar="FOLDER", help="second opinion: ask it the same keys"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what an endpoint would be sent, and the cost; send nothing"
    )
    parser.add_argument("--suspects", type=Path, metavar="FILE", help="many suspects, as YAML")
    parser.add_argument("--sets", type=Path, metavar="FOLDER", help="many sets: each file or folder in it")
    parser.add_argument("--signing-key", type=Path, metavar="FILE", help="sign the report with it (oml-fast keygen)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report here, and answers beside it")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as a page, too")


def run(options: argparse.Namespace) -> None:
    from .. import report

    if options.dry_run:
        return _dry_run(options)
    if options.suspects or options.sets:
        found = make_many(options)
        return finish(options, found.to_json(), many_text(found))
    verification = make(options)
    finish(options, verification.to_json(), report.text(verification))


def make(options: argparse.Namespace) -> Verification:
    """Verify one suspect against one set, and write the report where `--out` says."""
    from .. import report
    from ..signing import sign_document
    from ..verify import match_rule, verify
    from ..verify.journal import Journal

    since, signer = _since(options.suspect_since), _signer(options)
    fingerprints, secret = _set_and_secret(options)
    commitment, stamps = _commitment(options, fingerprints, secret)
    tokens = _tokens(options)
    terms = terms_of(options, commitment, [fingerprints])
    rule = match_rule(terms.pop("rule"))
    order = _order(fingerprints, secret, commitment)
    answers = answers_path(options.out) if options.out else None
    _require_files(options, answers)
    completer = suspect(options, [fingerprints])
    journal = Journal(answers) if answers else None

    def written(verification: Verification) -> tuple[dict[str, Any], str]:
        """The report, in the files asked for before the registry calls the attempt ended."""
        opinion = _second_opinion(options, fingerprints, verification)
        document = report.document(
            verification,
            suspect=suspect_name(options),
            suspect_known_since=since,
            commitment=commitment,
            order=order,
            timestamps=stamps,
            tokens=tokens,
            set_name=set_name(options.fingerprints),
            skipped=_skipped(verification, order),
            second_opinion=opinion,
            journal=journal,
            secret=secret,
        )
        if signer is not None:
            document = sign_document(document, signer)
        if options.out:
            report.write(document, options.out)
        try:
            if options.html:
                report.write_page(document, options.html)
        except OmlError:
            if not options.out:  # no answers are kept: what was paid for with keys is told, at least
                say(report.text(verification))
            raise
        return document, report.report_digest(document)

    with contextlib.ExitStack() as stack:
        attempt = attempt_of(stack, options, fingerprints, order, answers, suspect_name(options))
        if journal is not None:
            stack.enter_context(journal)
        kept = written if options.out or options.html or attempt is not None else None
        verification = verify(
            fingerprints, completer, rule=rule, order=order, attempt=attempt, journal=journal, report=kept, **terms
        )
        if kept is None:
            _second_opinion(options, fingerprints, verification)
        return verification


def _set_and_secret(options: argparse.Namespace) -> tuple[FingerprintSet, bytes | None]:
    from ..secret import read_secret

    if options.fingerprints is None:
        raise InvalidArgumentError("name the fingerprint set with --fingerprints PATH.")
    fingerprints = load_fingerprints(options.fingerprints)
    if options.secret is None:
        return fingerprints, None
    secret = read_secret(options.secret)
    fingerprints.check_draws(secret)
    return fingerprints, secret


def _commitment(
    options: argparse.Namespace, fingerprints: FingerprintSet, secret: bytes | None
) -> tuple[Commitment | None, list[TimeStamp]]:
    """The commitment, once it is shown to be to this set, secret and order; its timestamps where roots are named."""
    if options.commitment is None:
        if options.timestamp_root:
            raise InvalidArgumentError("--timestamp-root goes with --commitment FILE.")
        return None, []
    if secret is None:
        raise InvalidArgumentError("--commitment needs --secret FILE: the order of keys follows from the secret.")
    from ..commit import Commitment, check_timestamps, read_roots, read_tokens, require_commitment, tokens_path

    commitment = Commitment.load(options.commitment)
    require_commitment(commitment, fingerprints, secret)
    if not options.timestamp_root:
        return commitment, []
    roots = [root for path in options.timestamp_root for root in read_roots(path)]
    return commitment, check_timestamps(commitment, read_tokens(tokens_path(options.commitment)), roots)


def _order(fingerprints: FingerprintSet, secret: bytes | None, commitment: Commitment | None) -> tuple[int, ...] | None:
    if commitment is None or secret is None:
        return None
    from ..commit import asking_order

    return asking_order(fingerprints, secret)


def _second_opinion(
    options: argparse.Namespace, fingerprints: FingerprintSet, verification: Verification
) -> Calibration | None:
    if not options.null_model:
        return None
    from ..models import HfCompleter
    from ..verify.calibration import calibrate
    from .common import prepare

    prepare()
    models = [HfCompleter(load_model(options, folder), batch_size=options.batch_size) for folder in options.null_model]
    opinion = calibrate(fingerprints, verification, models)
    for model in opinion.models:
        found = "is a match as well" if model.match else "is no match"
        say(f"second opinion: {model.name} {found}: {model.matches} of {model.queried} of the same keys")
    return opinion


def _signer(options: argparse.Namespace) -> SigningKey | None:
    """The signing key, read before a key is spent."""
    if not options.signing_key:
        return None
    from .keygen import load_signing_key

    return load_signing_key(options.signing_key)


def _require_files(options: argparse.Namespace, answers: Path | None) -> None:
    """Refuse now what could not be written, or read, once keys are spent."""
    from ..files import require_writable

    outputs = [path for path in (options.out, options.html, answers) if path is not None]
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise InvalidArgumentError("--out, --html and the answers beside --out would be one file: choose other names.")
    for path in outputs:
        require_writable(path)
    for folder in options.null_model or ():
        if not folder.is_dir():
            raise InvalidArgumentError(f"there is no model folder {folder}: name another --null-model.")


def _skipped(verification: Verification, order: tuple[int, ...] | None) -> list[int]:
    """Keys that the committed order has before the last one asked, and that were not asked: spent before."""
    if order is None:
        return []
    asked = {key.number for key in verification.keys}
    last = max(place for place, number in enumerate(order) if number in asked)
    return [number for number in order[:last] if number not in asked]


def _since(text: str | None) -> datetime | None:
    """A date, or a time with its zone."""
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidArgumentError(f"--suspect-since {text!r}: write it as 2026-01-31.") from error
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)


def _tokens(options: argparse.Namespace) -> list[bytes]:
    """The timestamp authorities' answers that lie beside the commitment."""
    if options.commitment is None:
        return []
    from ..commit import read_tokens, tokens_path

    path = tokens_path(options.commitment)
    return read_tokens(path) if path.exists() else []


def _dry_run(options: argparse.Namespace) -> None:
    """What an endpoint would be asked, and what it would cost; nothing is sent and no key is spent."""
    import json

    from ..completer import Prompt
    from ..verify import match_rule
    from ..verify.endpoint import dry_run
    from .endpoint_options import endpoint_settings

    if options.endpoint is None:
        raise InvalidArgumentError("--dry-run goes with --endpoint URL.")
    fingerprints, _ = _set_and_secret(options)
    terms = terms_of(options, None, [fingerprints])
    asked = fingerprints.fingerprints[: terms["num_keys"] or len(fingerprints)]
    prompts = [Prompt(a.prompt_ids, f.key, name) for f in asked for name, a in f.askings.items()]
    length = match_rule(terms["rule"]).length(fingerprints.settings.response_length)
    result = dry_run(endpoint_settings(options), prompts, length)
    finish(options, result, json.dumps(result, indent=2))
