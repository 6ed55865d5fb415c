"""From a FingerprintSet to the published JSON list of [SF], with what that list cannot hold said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import InvalidArgumentError
from ..fingerprint import Fingerprint, FingerprintSet, Response


@dataclass(frozen=True, slots=True)
class Exported:
    """The published JSON list, the format whose askings are in it, and what is not, in words."""

    entries: list[dict[str, Any]]
    format: str
    lost: tuple[str, ...]


def export_published(fingerprints: FingerprintSet, format: str | None = None) -> Exported:
    """The set as [SF] publishes sets, in the order of the set; `format` None: the set's first.

    `response_prob` holds, as there, the probabilities of the last response; `response_probs`, which other readers pass
    over, those of every response. Raises InvalidArgumentError for a format in which the set is not asked.
    """
    formats = fingerprints.settings.formats
    format = formats[0] if format is None else format
    if format not in formats:
        raise InvalidArgumentError(f"format {format!r}: this set is asked in {', '.join(formats)}.")
    lost = ["token ids: whoever reads the list encodes its texts again", "settings, numbers and bits of the keys"]
    if fingerprints.has_windows:
        lost.append("windows: only the count test is left to whoever reads the list")
    if fingerprints.secret_commitment:
        lost.append("the secret's commitment: the draws cannot be proved from the list")
    if fingerprints.base_model_digest:
        lost.append("the digests of base model and tokenizer")
    if others := [name for name in formats if name != format]:
        lost.append(f"the responses in {', '.join(others)}: export them to a list of their own")
    if format == "chat":
        lost.append("the chat template: the list does not say that keys are asked inside it")
    return Exported([_entry(fingerprint, format) for fingerprint in fingerprints], format, tuple(lost))


def _entry(fingerprint: Fingerprint, format: str) -> dict[str, Any]:
    responses = fingerprint.askings[format].responses
    texts = [response.text for response in responses]
    probs = [_known(response) for response in responses]
    return {
        "key": fingerprint.key,
        "effective_key": fingerprint.key,
        "response": texts[0] if len(texts) == 1 else texts,
        "response_prob": probs[-1],
        "response_probs": probs,
    }


def _known(response: Response) -> list[float]:
    """The probabilities of a response's ids, without the zeros at the end that stand for unknown ones once imported."""
    probs = list(response.probs)
    while response.index is None and probs and probs[-1] == 0:
        probs.pop()
    return probs
