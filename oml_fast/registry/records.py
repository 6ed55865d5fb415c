"""What the registry answers with, and how it writes times and digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Clock = Callable[[], datetime]

# Fields of a report that may hold a key, a response or what was answered. The registry keeps none of them.
SECRET_FIELDS = frozenset(
    word
    for line in (
        "key key_ids prompt prompt_ids response responses window windows candidates opened",
        "completion completions answer answers text texts token_ids content reasoning",
    )
    for word in line.split()
)


@dataclass(frozen=True, slots=True)
class LicenseeRecord:
    """One who may hold a copy; `sets` were made for them."""

    name: str
    note: str
    added_at: str
    sets: int


@dataclass(frozen=True, slots=True)
class SetRecord:
    """A fingerprint set, without its fingerprints. `licensee` is None for the owner's own."""

    digest: str
    num_fingerprints: int
    base_model: str
    base_model_digest: str
    tokenizer_digest: str
    secret_commitment: str
    order_digest: str
    licensee: str | None
    added_at: str


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A model that carries a set."""

    digest: str
    set_digest: str
    path: str
    licensee: str | None
    added_at: str


@dataclass(frozen=True, slots=True)
class KeyCount:
    """How many keys of a set are left. `seen` counts those shown to the suspect asked about, or to everyone."""

    set_digest: str
    licensee: str | None
    num_fingerprints: int
    left: int
    spent: int
    seen: int | None


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One verification: `keys` were shown in it. Without an end it runs still, or was stopped.

    One that was stopped, or ended with `inconclusive`, can be resumed.
    """

    id: str
    set_digest: str
    licensee: str | None
    suspect: str
    started_at: str
    ended_at: str | None
    verdict: str | None
    report_digest: str | None
    keys: int


def utc_now() -> datetime:
    return datetime.now(UTC)


def timestamp(clock: Clock) -> str:
    """The clock's time as UTC, ISO 8601, to the second."""
    now = clock()
    assert now.tzinfo is not None, "the clock must know its time zone"
    return now.astimezone(UTC).isoformat(timespec="seconds")


def json_digest(value: Any) -> str:
    """SHA-256 over canonical JSON (hex)."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def without_secrets(value: Any) -> Any:
    """A report's JSON without the fields that may hold a key, a response or an answer, at any depth.

    A float stays whatever its name is ("window" also names a test): it can be neither text nor a token id.
    """
    if isinstance(value, Mapping):
        kept = {name: inner for name, inner in value.items() if name not in SECRET_FIELDS or isinstance(inner, float)}
        return {name: without_secrets(inner) for name, inner in kept.items()}
    return [without_secrets(inner) for inner in value] if isinstance(value, list | tuple) else value
