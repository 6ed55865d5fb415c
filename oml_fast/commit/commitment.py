"""A commitment: one digest that fixes the fingerprints, the order of asking, the secret, the models and the rules.

The fingerprints are the leaves of a Merkle tree in the order in which their keys will be asked, each behind a salt, so
that opening some says nothing about the others. Order and salts come from the owner's secret. The commitment itself
holds nothing secret; its digest is what a timestamp authority signs.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import secret as secrets
from ..errors import InvalidArgumentError, OmlError
from ..files import read_text, write_json
from ..fingerprint import Fingerprint, FingerprintSet, Settings
from ..fingerprint_json import fingerprint_from_json
from ..signing import canonical_json, parse_json
from .merkle import Tree

FORMAT = 1
TESTS = ("auto", "count", "window", "rank", "forced_choice")
MODES = ("sequential", "fixed")
_DOMAIN = b"oml_fast commitment v1\n"
_DIGEST = re.compile("[0-9a-f]{64}")
_RULE = re.compile("exact|prefix|within-[1-9][0-9]{0,5}")
_TIME = "%Y-%m-%dT%H:%M:%SZ"


class CommitmentError(OmlError):
    """A commitment, opening or timestamp that is damaged, or that does not fit what it is held against."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a verdict will be reached. `num_keys` is the most keys asked of one suspect; None: all of the set."""

    match_rule: str = "exact"
    test: str = "auto"
    mode: str = "sequential"
    false_positive_rate: float = 1e-6
    smallest_fsr: float = 0.5
    miss_rate: float = 0.01
    num_keys: int | None = None

    def __post_init__(self) -> None:
        rule, keys = self.match_rule, self.num_keys
        known = isinstance(rule, str) and _RULE.fullmatch(rule)
        _require(known, f"match rule {rule!r}: it must be exact, prefix or within-N.")
        _require(self.test in TESTS, f"test {self.test!r}: one of {', '.join(TESTS)}.")
        _require(self.mode in MODES, f"mode {self.mode!r}: one of {', '.join(MODES)}.")
        for name in ("false_positive_rate", "smallest_fsr", "miss_rate"):
            value = getattr(self, name)
            good = type(value) is float and 0 < value < 1
            _require(good, f"{name.replace('_', ' ')} {value!r}: it must be a number between 0 and 1.")
        _require(keys is None or (type(keys) is int and keys > 0), f"number of keys {keys!r}: it must be above 0.")


@dataclass(frozen=True, slots=True)
class Commitment:
    """What was fixed. Digests are SHA-256 in hex; `created` is the owner's own clock, which proves nothing."""

    secret_commitment: str
    merkle_root: str
    num_fingerprints: int
    model_digest: str
    base_model_digest: str
    tokenizer_digest: str
    width: int
    responses_per_key: int
    response_length: int
    formats: tuple[str, ...]
    terms: Terms
    created: str
    format: int = FORMAT

    def __post_init__(self) -> None:
        version = self.format
        _require(type(version) is int and version == FORMAT, f"format {version!r}: this oml_fast reads {FORMAT}.")
        for name in ("secret_commitment", "merkle_root", "model_digest", "base_model_digest", "tokenizer_digest"):
            value = getattr(self, name)
            good = isinstance(value, str) and _DIGEST.fullmatch(value)
            _require(good, f"{name.replace('_', ' ')}: it must be a SHA-256 digest, 64 hex digits.")
        count = self.num_fingerprints
        _require(type(count) is int and 0 < count < 2**32, f"number of fingerprints {count!r}: it must be above 0.")
        _require(_is_time(self.created), f"created {self.created!r}: it must be written as 2026-01-31T23:59:59Z.")
        self.settings()

    def settings(self) -> Settings:
        """As much of the set's settings as reading a leaf needs."""
        return Settings(
            width=self.width,
            responses_per_key=self.responses_per_key,
            response_length=self.response_length,
            formats=self.formats,
        )

    def content(self) -> bytes:
        """What is timestamped: a prefix of its own, then the canonical JSON of every field."""
        return _DOMAIN + canonical_json(self.to_json())

    def digest(self) -> str:
        """SHA-256 over `content()` (hex)."""
        return hashlib.sha256(self.content()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "formats": list(self.formats)}

    def save(self, path: str | Path) -> None:
        """Write the commitment to a new file: one that was timestamped must not be lost (InvalidArgumentError)."""
        require_new_file(path)
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Commitment:
        """Read a commitment and check every field. Raises CommitmentError that names the file and the field."""
        try:
            value = parse_json(read_text(path, "the commitment"), "the commitment")
            return cls.from_json(value)
        except (InvalidArgumentError, CommitmentError) as error:
            raise CommitmentError(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, value: Any) -> Commitment:
        """A commitment from its JSON object. Raises CommitmentError that names the field."""
        values = take_fields(value, {field.name for field in fields(cls)}, "the commitment")
        terms = take_fields(values["terms"], {field.name for field in fields(Terms)}, "its terms")
        formats = values["formats"]
        if not isinstance(formats, list):
            raise CommitmentError("the commitment's formats are no list: restore it from its backup.")
        try:
            return cls(**{**values, "formats": tuple(formats), "terms": Terms(**terms)})
        except (InvalidArgumentError, TypeError) as error:
            raise CommitmentError(f"the commitment's {error}") from error


def require_new_file(path: str | Path) -> None:
    """Raise InvalidArgumentError where a commitment would replace something."""
    if os.path.lexists(path):
        raise InvalidArgumentError(f"{path} already exists: a commitment is never overwritten. Choose another --out.")


def commit(
    fingerprints: FingerprintSet, secret: bytes, terms: Terms, model_digest: str, *, at: datetime | None = None
) -> Commitment:
    """Commit to a set, its secret and order, the fingerprinted model and the terms; `at` is the time, now by default.

    Raises FingerprintFormatError where the secret is not the set's, InvalidArgumentError where the set is empty, was
    imported, or has a number twice.
    """
    at = datetime.now(UTC) if at is None else at
    _require(at.tzinfo is not None, "the time has no zone: give it in UTC.")
    settings = fingerprints.settings
    return Commitment(
        merkle_root=Tree([entry for _, entry in entries(fingerprints, secret)]).root.hex(),
        secret_commitment=secrets.commitment(secret),
        num_fingerprints=len(fingerprints),
        model_digest=model_digest,
        base_model_digest=fingerprints.base_model_digest,
        tokenizer_digest=fingerprints.tokenizer_digest,
        width=settings.width,
        responses_per_key=settings.responses_per_key,
        response_length=settings.response_length,
        formats=settings.formats,
        terms=terms,
        created=at.astimezone(UTC).strftime(_TIME),
    )


def asking_order(fingerprints: FingerprintSet, secret: bytes) -> tuple[int, ...]:
    """The fingerprints' numbers in the order in which their keys are to be asked: the order of the tree's leaves."""
    _require(fingerprints.secret_commitment, "an imported set has no secret, and cannot be committed to.")
    fingerprints.require_secret(secret)
    _require(len(fingerprints), "the set is empty: there is nothing to commit to.")
    numbers = [fingerprint.number for fingerprint in fingerprints]
    _require(len(set(numbers)) == len(numbers), "two fingerprints have the same number: generate the set again.")
    return secrets.order(secret, numbers)


def entries(fingerprints: FingerprintSet, secret: bytes) -> list[tuple[int, bytes]]:
    """Each fingerprint's number and its entry in the tree (32 bytes of salt, then its JSON), in the asking order."""
    by_number = {fingerprint.number: fingerprint for fingerprint in fingerprints}
    made = []
    for number in asking_order(fingerprints, secret):
        content = leaf_content(fingerprint_from_json(asdict(by_number[number]), fingerprints.settings))
        made.append((number, secrets.salt(secret, content) + content))
    return made


def leaf_content(fingerprint: Fingerprint) -> bytes:
    """The whole fingerprint as canonical JSON."""
    return canonical_json(asdict(fingerprint))


def require_commitment(
    commitment: Commitment,
    fingerprints: FingerprintSet,
    secret: bytes,
    *,
    terms: Terms | None = None,
    model_digest: str | None = None,
) -> None:
    """Raise CommitmentError that names what differs, unless the commitment is to just this.

    Terms and model are compared where they are given. Any other fingerprint, number of them, order or secret has
    another root.
    """
    if secrets.commitment(secret) != commitment.secret_commitment:
        raise CommitmentError("the commitment is to another secret: name the one that it was made with.")
    created = datetime.strptime(commitment.created, _TIME).replace(tzinfo=UTC)
    made = commit(
        fingerprints, secret, terms or commitment.terms, model_digest or commitment.model_digest, at=created
    ).to_json()
    told = commitment.to_json()
    differ = [name for name in told if told[name] != made[name] and name not in ("merkle_root", "terms")]
    differ += [f"terms.{name}" for name in told["terms"] if told["terms"][name] != made["terms"][name]]
    if told["merkle_root"] != made["merkle_root"]:
        differ.append("merkle_root (a fingerprint was changed, added or left out)")
    if differ:
        raise CommitmentError(f"the commitment is to something else; what differs: {', '.join(differ)}.")


def take_fields(value: Any, names: set[str], what: str) -> Mapping[str, Any]:
    """`value` as a JSON object of exactly these names; CommitmentError that tells the one missing or unknown."""
    if not isinstance(value, dict):
        raise CommitmentError(f"{what} is no JSON object: restore it from its backup.")
    if not names & set(value):
        raise CommitmentError(f"{what} has none of its fields: is this another file? Name the one that holds it.")
    for problem, found in (("has no", names - set(value)), ("has an unknown field", set(value) - names)):
        if found:
            raise CommitmentError(f"{what} {problem} {min(found)[:40]!r}: restore it from its backup.")
    return value


def _is_time(value: Any) -> bool:
    try:
        return isinstance(value, str) and datetime.strptime(value, _TIME).strftime(_TIME) == value
    except ValueError:
        return False


def _require(condition: object, message: str) -> None:
    if not condition:
        raise InvalidArgumentError(message)
