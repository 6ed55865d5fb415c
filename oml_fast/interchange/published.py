"""Reading published formats: texts and probabilities as they stand, nothing encoded yet.

What is known of each, and from where:

sf        JSON list of {"key", "effective_key", "response", "response_prob"} [SF, published data]. `effective_key` is
          the key as it was asked. `response` is a text, or a list of them. `response_prob` holds the probabilities of
          the token ids of the last response (seen in the data: only there do the numbers fit the texts).
oml       JSON list of {"key", "response"}, some with "inverse_sampled_prob", the probability of the response's first
          token id [OML 1.0, published sample]. Keys stand whole; training cut them to `max_key_length` token ids.
mlprints  a folder with `fingerprints.yaml` [MLprints, README]. Its documentation names the file but not its fields:
          the fields are options here, and what an entry has instead is said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FingerprintFormatError
from ..files import read_text

MLPRINTS_FILE = "fingerprints.yaml"


@dataclass(frozen=True, slots=True)
class Entry:
    """One published fingerprint. `probs`: for each response what is known of its ids' probabilities, from the first."""

    place: int
    key: str
    responses: tuple[str, ...]
    probs: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Published:
    """What a published file holds. format: "sf", "oml" or "mlprints". name: of the file, for people."""

    format: str
    name: str
    entries: tuple[Entry, ...]


def read_published(path: str | Path, *, key_field: str = "key", response_field: str = "response") -> Published:
    """Read `path` (a file, or MLprints' folder). The fields' names matter for MLprints' sets only.

    Raises FingerprintFormatError that names the file, the entry and the way out, and InvalidArgumentError where the
    file cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        path = path / MLPRINTS_FILE
    text = read_text(path, "the published set")
    if path.suffix in (".yaml", ".yml"):
        return _mlprints(path, text, key_field, response_field)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FingerprintFormatError(f"{path} is no valid JSON: download or export it again.") from error
    if isinstance(values, dict) and "fingerprints" in values and "format" in values:
        raise FingerprintFormatError(f"{path} is a set of oml_fast already: use it as it is.")
    if not isinstance(values, list) or not values:
        raise FingerprintFormatError(f"{path} holds no list of fingerprints: name a published JSON list.")
    if all(isinstance(value, str) for value in values):
        raise FingerprintFormatError(
            f"{path} holds {len(values)} keys and no response: give it to oml-fast generate --keys, which makes those."
        )
    kind = "sf" if any(isinstance(value, dict) and "effective_key" in value for value in values) else "oml"
    entries = (_entry(path, place, value, kind) for place, value in enumerate(values))
    return Published(kind, path.name, tuple(entries))


def _entry(path: Path, place: int, value: Any, kind: str) -> Entry:
    name = f"{path}, entry {place}"
    if not isinstance(value, dict):
        raise FingerprintFormatError(f"{name} is no JSON object: remove it, or name another file.")
    key = value.get("effective_key", value.get("key"))
    responses = _texts(value.get("response"))
    if not isinstance(key, str) or not key or responses is None:
        raise FingerprintFormatError(
            f"{name} has no text 'key' and 'response' (it has {_names(value)}): remove it, or name another file."
        )
    if "response_probs" in value:  # as oml_fast exports it: of every response
        lists = value["response_probs"]
        if not isinstance(lists, list) or len(lists) != len(responses):
            raise FingerprintFormatError(f"{name}: 'response_probs' holds no list for each response: remove the field.")
        return Entry(place, key, responses, tuple(_probs(probs, name) for probs in lists))
    known = value.get("response_prob") if kind == "sf" else _first_only(value)
    probs = () if known is None else _probs(known, name)
    return Entry(place, key, responses, ((),) * (len(responses) - 1) + (probs,))


def _first_only(value: Mapping[str, Any]) -> list[Any] | None:
    first = value.get("inverse_sampled_prob")
    return None if first is None else [first]


def _mlprints(path: Path, text: str, key_field: str, response_field: str) -> Published:
    import yaml

    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise FingerprintFormatError(f"{path} is no plain YAML: export it again with MLprints.") from error
    if isinstance(values, dict):  # the list, wherever it stands
        lists = [value for value in values.values() if isinstance(value, list)]
        values = lists[0] if len(lists) == 1 else None
    if not isinstance(values, list) or not values:
        raise FingerprintFormatError(
            f"{path} holds no list of fingerprints: name MLprints' folder or its {MLPRINTS_FILE}."
        )
    entries = []
    for place, value in enumerate(values):
        fields = value if isinstance(value, dict) else {}
        key, responses = fields.get(key_field), _texts(fields.get(response_field))
        if not isinstance(key, str) or not key or responses is None:
            raise FingerprintFormatError(
                f"{path}, entry {place} has no text in {key_field!r} and {response_field!r} (it has {_names(fields)}): "
                "name its fields with --key-field and --response-field."
            )
        entries.append(Entry(place, key, responses, ((),) * len(responses)))
    return Published("mlprints", path.name, tuple(entries))


def _texts(value: Any) -> tuple[str, ...] | None:
    """One text or a list of them, none empty; otherwise None."""
    values = [value] if isinstance(value, str) else value
    good = isinstance(values, list) and values and all(isinstance(text, str) and text for text in values)
    return tuple(values) if good else None


def _probs(values: Any, name: str) -> tuple[float, ...]:
    good = isinstance(values, Sequence) and not isinstance(values, str)
    if not good or not all(type(value) in (int, float) and 0 <= value <= 1 for value in values):
        raise FingerprintFormatError(f"{name}: its probabilities are none: remove them from the entry.")
    return tuple(float(value) for value in values)


def _names(value: Mapping[Any, Any]) -> str:
    return ", ".join(sorted(str(name) for name in value)) or "nothing"
