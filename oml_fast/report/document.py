"""The report as a document: a verification, what it rests on, and nothing that a suspect's host could use.

No key, response, window or answer is in it. Of each answer it holds a salted digest, so that the owner can show later
what the suspect said; the salts come from the owner's secret and the report's nonce, and go into the opening alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets as randomness
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from .. import secret as secrets
from ..commit import Commitment, TimeStamp, evidence_kind
from ..completer import Completion
from ..errors import InvalidArgumentError
from ..files import read_text, write_json
from ..signing import canonical_json, parse_json
from ..verify import Verification
from ..verify.calibration import Calibration
from ..verify.journal import answer_json
from . import words
from .form import first_fault

FORMAT = 1
KIND = "oml_fast verification report"
MOST_BYTES = 1 << 28
_DOMAIN = b"oml_fast report v1\n"
_ANSWER_DOMAIN = b"oml_fast answer v1\n"


class Answered(Protocol):
    """What keeps answers: a `verify.Journal`."""

    def get(self, number: int, format_name: str) -> Completion | None: ...


def document(
    verification: Verification,
    *,
    suspect: str,
    suspect_known_since: datetime | None = None,
    commitment: Commitment | None = None,
    order: Sequence[int] | None = None,
    timestamps: Sequence[TimeStamp] = (),
    tokens: Sequence[bytes] = (),
    licensee: str | None = None,
    set_name: str | None = None,
    skipped: Sequence[int] = (),
    second_opinion: Calibration | None = None,
    journal: Answered | None = None,
    secret: bytes | None = None,
    created: datetime | None = None,
) -> dict[str, Any]:
    """The report, in plain JSON values; `signing.sign_document` signs it.

    suspect: what the owner calls it. suspect_known_since: when it first existed, as far as the owner knows. order:
    the committed order of asking (`commit.asking_order`), needed with a commitment. tokens: the authorities' answers;
    timestamps: what `check_timestamps` found in them. skipped: numbers of keys passed over, spent before. With journal
    and secret it holds the answers' digests, without which it cannot be opened.

    Raises InvalidArgumentError where a time has no zone, or the commitment's order is missing or lacks a key.
    """
    if commitment is None:
        timestamps = tokens = ()
    since = _zoned(suspect_known_since, "known since")
    value = verification.to_json()
    numbers = [key["number"] for key in value["keys"]]
    leaves = None if commitment is None else _places(numbers, order)
    opinion = None if second_opinion is None else asdict(second_opinion)
    made: dict[str, Any] = {
        "format": FORMAT,
        "kind": KIND,
        "created": _time(_zoned(created, "created") or datetime.now(UTC)),
        "headline": words.headline(value, opinion),
        "verification": value,
        "suspect": {"name": suspect, "known_since": since and _time(since)},
        "licensee": licensee,
        "set_name": set_name,
        "commitment": None if commitment is None else commitment.to_json(),
        "commitment_digest": None if commitment is None else commitment.digest(),
        "leaves": leaves,
        "skipped": _skipped(skipped, numbers, order if leaves else None),
        "timestamps": [stamp.to_json() for stamp in timestamps],
        "timestamp_tokens": [base64.b64encode(token).decode() for token in tokens],
        "evidence_kind": evidence_kind(timestamps, since),
        "second_opinion": opinion,
        "answers": None if journal is None or secret is None else _digests(value, journal, secret),
    }
    made["assumptions"] = words.assumptions(made)
    plain: dict[str, Any] = json.loads(canonical_json(made))
    if fault := first_fault(plain, schema()):
        raise InvalidArgumentError(f"cannot make a report of this: {fault}.")
    return plain


def load(path: str | Path) -> dict[str, Any]:
    """Read a report and check its form. InvalidArgumentError that names the file and the field; see `checking`."""
    if Path(path).exists() and Path(path).stat().st_size > MOST_BYTES:
        raise InvalidArgumentError(f"{path} is larger than a report can be: name the report's JSON file.")
    try:
        value = parse_json(read_text(path, "the report"), "the report")
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{path}: {error}") from error
    if isinstance(value, dict) and value.get("kind") != KIND:
        raise InvalidArgumentError(f"{path} is no report: name the JSON file that oml-fast verify --out wrote.")
    if fault := first_fault(value, schema()):
        raise InvalidArgumentError(f"{path} is damaged or was edited: {fault}. Ask its owner for the original.")
    return dict(value)


def write(report: Verification | Mapping[str, Any], path: str | Path) -> None:
    """Write a report, or a verification alone, as JSON, whole or not at all. Raises OmlError when it cannot."""
    write_json(path, report.to_json() if isinstance(report, Verification) else report)


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of a report (draft 2020-12)."""
    text = resources.files(__package__).joinpath("schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def report_digest(report: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON of a report without its signature (hex): which report an opening is for."""
    content = {name: value for name, value in report.items() if name != "signature"}
    return hashlib.sha256(_DOMAIN + canonical_json(content)).hexdigest()


def answer_salt(secret: bytes, nonce: str, number: int, name: str, answer: Mapping[str, Any]) -> bytes:
    """32 bytes that hide an answer behind its digest; another in every report."""
    return secrets.salt(secret, _ANSWER_DOMAIN + canonical_json([nonce, number, name, answer]))


def answer_digest(salt: bytes, nonce: str, number: int, name: str, answer: Mapping[str, Any]) -> str:
    """SHA-256 over the salt, and the answer with what it answers (hex)."""
    return hashlib.sha256(_ANSWER_DOMAIN + salt + canonical_json([nonce, number, name, answer])).hexdigest()


def _digests(verification: Mapping[str, Any], journal: Answered, secret: bytes) -> dict[str, Any]:
    """Of each asked key, in order, and each format the digest of the answer; None where no answer came."""
    nonce = randomness.token_hex(16)
    found: list[dict[str, str | None]] = []
    for key in verification["keys"]:
        found.append({})
        for name in key["satisfied"]:
            kept = journal.get(key["number"], name)
            answer = None if kept is None else answer_json(kept)
            asked = (nonce, key["number"], name)
            salt = None if answer is None else answer_salt(secret, *asked, answer)
            found[-1][name] = None if answer is None or salt is None else answer_digest(salt, *asked, answer)
        if key["answered"] != (None not in found[-1].values()):
            raise InvalidArgumentError(f"the journal lacks answers to key {key['number']}: name this verification's.")
    return {"nonce": nonce, "digests": found}


def _places(numbers: Sequence[int], order: Sequence[int] | None) -> list[int]:
    """Each number's place in the committed order."""
    if order is None:
        raise InvalidArgumentError("a committed report needs the order of asking: pass order=asking_order(...).")
    place_of = {number: place for place, number in enumerate(order)}
    missing = [number for number in numbers if number not in place_of]
    if missing:
        raise InvalidArgumentError(f"key {missing[0]} is not in the committed order: pass that of this set.")
    return [place_of[number] for number in numbers]


def _skipped(skipped: Sequence[int], numbers: Sequence[int], order: Sequence[int] | None) -> list[dict[str, Any]]:
    """The keys passed over: with a commitment, those before the last one asked, with their place in its order."""
    if order is None:
        return [{"number": int(number), "leaf": None} for number in skipped]
    asked, passed = set(numbers), set(skipped)
    last = max(place for place, number in enumerate(order) if number in asked)
    return [
        {"number": int(number), "leaf": place}
        for place, number in enumerate(order)
        if number not in asked and number in passed and place < last
    ]


def _zoned(when: datetime | None, name: str) -> datetime | None:
    """In whole seconds, as the report tells it."""
    if when is not None and when.tzinfo is None:
        raise InvalidArgumentError(f"{name} {when}: the time has no zone. Give it in UTC.")
    return when and when.replace(microsecond=0)


def _time(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
