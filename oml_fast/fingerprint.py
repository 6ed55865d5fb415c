"""Fingerprint and FingerprintSet: what is secret about a fingerprinted model, and the file that keeps it.

The file is JSON with a `format` number, written whole with mode 0600. It holds, for each fingerprint and for each
format in which its key is asked, the exact prompt ids, the window of candidates, the draw and the response. Keep it
out of the model's folder: who has it can recognise and suppress the fingerprints.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .errors import FingerprintFormatError, InvalidArgumentError
from .files import SECRET_MODE, write_atomic
from .secret import commitment, draw

FORMAT = 1
FORMATS = ("raw", "chat")
KEY_SOURCES = ("model", "words", "file")
# Chat templates may write today's date or open a thinking block; a fingerprint must be asked as it was made.
TEMPLATE_VARIABLES = {"date_string": "01 Jan 2026", "enable_thinking": False}


@dataclass(frozen=True, slots=True)
class Settings:
    """How a fingerprint set is made. Every field is part of the file and of the draw."""

    threshold: float = 0.8
    width: int = 16
    responses_per_key: int = 1
    response_length: int = 1
    key_length: int = 16
    key_source: str = "model"
    key_temperature: float = 0.7
    formats: tuple[str, ...] = ("raw",)
    template_variables: dict[str, Any] = field(default_factory=lambda: dict(TEMPLATE_VARIABLES))

    def __post_init__(self) -> None:
        for name in ("width", "responses_per_key", "response_length", "key_length"):
            value = getattr(self, name)
            _require(type(value) is int, f"{name} {value!r}: it must be a whole number.")
        for name in ("threshold", "key_temperature"):
            value = getattr(self, name)
            _require(type(value) in (int, float), f"{name} {value!r}: it must be a number.")
        _require(0 <= self.threshold < 1, f"nucleus threshold {self.threshold}: it must lie in [0, 1).")
        _require(self.width >= 2, f"width {self.width}: it must be at least 2, or the draw says nothing.")
        _require(
            1 <= self.responses_per_key <= self.width,
            f"{self.responses_per_key} responses per key: between 1 and the width ({self.width}) can be drawn.",
        )
        _require(1 <= self.response_length <= 32, f"response length {self.response_length}: between 1 and 32.")
        _require(2 <= self.key_length <= 512, f"key length {self.key_length}: between 2 and 512 token ids.")
        _require(self.key_source in KEY_SOURCES, f"key source {self.key_source!r}: one of {', '.join(KEY_SOURCES)}.")
        _require(0 < self.key_temperature < 100, f"key temperature {self.key_temperature}: between 0 and 100.")
        known = isinstance(self.formats, tuple) and sum(name in self.formats for name in FORMATS) == len(self.formats)
        _require(known and self.formats, f"formats {self.formats!r}: one or both of {', '.join(FORMATS)}, each once.")
        _require(_is_json(self.template_variables), "template_variables: they must be names with plain JSON values.")

    def digest(self) -> str:
        """SHA-256 over the canonical JSON of all fields (hex)."""
        return _digest_json(asdict(self))


@dataclass(frozen=True, slots=True)
class Window:
    """The k accepted candidates just outside the nucleus, most probable first. As secret as the response.

    Empty in an imported set, whose windows nobody kept.
    """

    token_ids: tuple[int, ...]
    texts: tuple[str, ...]
    probs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Response:
    """What a fingerprinted model answers. `index` is its first token's place in the window, None where none is known.

    `probs` are the base model's probabilities of each token id, given those before it.
    """

    slot: int
    index: int | None
    text: str
    token_ids: tuple[int, ...]
    probs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Asking:
    """One format in which a key is asked: the prompt as ids, the window there, and the responses drawn from it."""

    prompt_ids: tuple[int, ...]
    window: Window
    nucleus_size: int
    nucleus_mass: float
    responses: tuple[Response, ...]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """One secret (key, response) pair. `key_bits` is -log2 of the chance that the key's maker makes this key again."""

    number: int
    key: str
    key_ids: tuple[int, ...]
    key_bits: float | None
    askings: dict[str, Asking]


@dataclass(frozen=True, slots=True)
class FingerprintSet:
    """All fingerprints of one model, with what is needed to prove how they were made."""

    settings: Settings
    base_model: str
    base_model_digest: str
    tokenizer_digest: str
    secret_commitment: str
    fingerprints: tuple[Fingerprint, ...]

    def __len__(self) -> int:
        return len(self.fingerprints)

    def __iter__(self) -> Iterator[Fingerprint]:
        return iter(self.fingerprints)

    def digest(self) -> str:
        """SHA-256 over the canonical JSON of the whole set (hex)."""
        return _digest_json(self.to_json())

    @property
    def has_windows(self) -> bool:
        """Whether the windows are known that the responses were drawn from. In an imported set they are not."""
        return all(asking.window.token_ids for fingerprint in self for asking in fingerprint.askings.values())

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    def save(self, path: str | Path) -> None:
        """Write the set whole, with mode 0600. Raises OmlError when it cannot; `path` is then as it was."""
        write_atomic(path, json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n", SECRET_MODE)

    @classmethod
    def load(cls, path: str | Path) -> FingerprintSet:
        """Read and validate a set. Raises FingerprintFormatError that names the file, the entry and the way out."""
        from .fingerprint_json import read_set

        return read_set(Path(path))

    def require_secret(self, secret: bytes) -> None:
        """Raise FingerprintFormatError unless `secret` is the one whose draws are in this set."""
        if not self.secret_commitment:
            raise FingerprintFormatError(
                "this set was imported: no secret drew its responses, and nothing can be proved with one. Name none."
            )
        if commitment(secret) != self.secret_commitment:
            raise FingerprintFormatError(
                "this secret is not the one the fingerprints were drawn with: name the secret kept beside them."
            )

    def check_draws(self, secret: bytes) -> None:
        """Repeat every draw from the secret; raise FingerprintFormatError that names the first that differs."""
        self.require_secret(secret)
        for fingerprint in self:
            for name, asking in fingerprint.askings.items():
                drawn = draw_responses(
                    secret, self.base_model_digest, self.tokenizer_digest, self.settings, name, fingerprint.key_ids
                )
                if drawn != tuple(response.index for response in asking.responses):
                    raise FingerprintFormatError(
                        f"fingerprint {fingerprint.number}, {name}: its response is not the one that the secret draws."
                    )


def draw_responses(
    secret: bytes,
    base_model_digest: str,
    tokenizer_digest: str,
    settings: Settings,
    format_name: str,
    key_ids: tuple[int, ...],
) -> tuple[int, ...]:
    """Indices into the window of a key's responses, one per slot: uniform, distinct, fixed by the secret.

    The keyed digest covers the base model, the tokenizer, the settings, the format and the key's ids, and nothing that
    depends on the window or on any model's answers.
    """
    ids = b"".join(token_id.to_bytes(8, "big") for token_id in key_ids)
    digests = (base_model_digest, tokenizer_digest, settings.digest(), format_name)
    parts = [*(part.encode() for part in digests), ids]
    return draw(secret, parts, settings.width, settings.responses_per_key)


def settings_from(values: dict[str, Any]) -> Settings:
    """Settings from plain JSON or YAML values; an unknown or ill-typed one is an InvalidArgumentError."""
    known = {f.name for f in fields(Settings)}
    unknown = sorted(set(values) - known)
    _require(not unknown, f"unknown settings {', '.join(unknown)}: known are {', '.join(sorted(known))}.")
    values = dict(values)
    if isinstance(values.get("formats"), list):
        values["formats"] = tuple(values["formats"])
    try:
        return Settings(**values)
    except TypeError as error:
        raise InvalidArgumentError(f"a setting has the wrong type: {error}.") from error


def _is_json(value: Any) -> bool:
    """Whether `value` is a JSON object that is read back as it was written."""
    try:
        return isinstance(value, dict) and json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        return False


def _require(condition: object, message: str) -> None:
    if not condition:
        raise InvalidArgumentError(message)


def _digest_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
