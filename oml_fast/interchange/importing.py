"""From published texts to a FingerprintSet, for a tokenizer: what does not survive encoding is left out and counted.

Checks, in this order, each with the reason under which an entry is counted:

key_encoding           the key's ids do not decode to the key, or the prompt does not end in them
key_length             fewer than 2 or more than 512 token ids
response_encoding      key and response together do not encode to the key's ids and more, or do not decode back
number_of_responses    not as many responses as most entries have
response_short         fewer token ids than the response length asked for
responses_alike        two responses that are one when cut to the response length
conflicting            the same key ids as another entry, with other responses: what the model learned is not known
duplicate              the same key ids and responses as an earlier entry
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import FingerprintFormatError, InvalidArgumentError
from ..fingerprint import (
    FORMATS,
    TEMPLATE_VARIABLES,
    Asking,
    Fingerprint,
    FingerprintSet,
    Response,
    Settings,
    Window,
)
from .published import Entry, Published

PUBLISHED_WIDTH = 3
_LONGEST_RESPONSE, _LONGEST_KEY = 32, 512
_UNKNOWN = 0.0  # a probability, in an imported set


@dataclass(frozen=True, slots=True)
class Imported:
    """A set, and what did not come along. dropped: reason -> places in the file, from 0; lost: in words."""

    fingerprints: FingerprintSet
    format: str
    read: int
    dropped: Mapping[str, tuple[int, ...]]
    unknown_probs: int
    lost: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        settings = self.fingerprints.settings
        return {
            "format": self.format,
            "read": self.read,
            "num_fingerprints": len(self.fingerprints),
            "dropped": {reason: len(places) for reason, places in self.dropped.items()},
            "dropped_places": {reason: list(places) for reason, places in self.dropped.items()},
            "unknown_probs": self.unknown_probs,
            "width": settings.width,
            "response_length": settings.response_length,
            "responses_per_key": settings.responses_per_key,
            "lost": list(self.lost),
            "set_digest": self.fingerprints.digest(),
        }


@dataclass(frozen=True, slots=True)
class _Encoded:
    """An entry as ids: of its key, its prompt, and each response after the prompt."""

    entry: Entry
    key: str
    key_ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]


def import_published(
    published: Published,
    tokenizer: Any,
    *,
    tokenizer_digest: str,
    base_model: str = "",
    base_model_digest: str = "",
    width: int = PUBLISHED_WIDTH,
    response_length: int | None = None,
    key_length: int | None = None,
    format: str = "raw",
) -> Imported:
    """A set of the entries that can be asked with `tokenizer`, in `format`; `number` is the place in the file.

    width: of the windows that nobody kept, on the publisher's word. response_length: ids of each response (None: the
    longest that all have, at most 32). key_length: keys are cut to it first, as training did. base_model_digest: ""
    where the base model is unknown. Raises InvalidArgumentError, and FingerprintFormatError where nothing is left.
    """
    _check(tokenizer, response_length, key_length, format)
    dropped: dict[str, list[int]] = defaultdict(list)
    encoded = []
    for entry in published.entries:
        made = _encode(tokenizer, entry, key_length, format)
        if isinstance(made, str):
            dropped[made].append(entry.place)
        else:
            encoded.append(made)
    encoded, per_key = _of_one_kind(encoded, dropped)
    length = response_length or min([_LONGEST_RESPONSE, *(len(ids) for made in encoded for ids in made.responses)])
    kept = _distinct(encoded, length, dropped)
    places = {reason: tuple(sorted(of_reason)) for reason, of_reason in sorted(dropped.items())}
    if not kept:
        reasons = ", ".join(f"{reason} {len(of_reason)}" for reason, of_reason in places.items())
        raise FingerprintFormatError(
            f"nothing is left of the {len(published.entries)} entries of {published.name} ({reasons}): name the "
            "tokenizer of the model that they were made for."
        )
    fingerprints = FingerprintSet(
        settings=Settings(
            width=width,
            responses_per_key=per_key,
            response_length=length,
            key_length=max(len(made.key_ids) for made in kept),
            key_source="file",
            formats=(format,),
        ),
        base_model=base_model or f"unknown (imported from {published.name})",
        base_model_digest=base_model_digest,
        tokenizer_digest=tokenizer_digest,
        secret_commitment="",
        fingerprints=tuple(_fingerprint(tokenizer, made, length, format) for made in kept),
    )
    unknown = sum(len(probs) != len(ids) for made in kept for probs, ids in _paired(made))
    return Imported(fingerprints, published.format, len(published.entries), places, unknown, lost(fingerprints))


def lost(fingerprints: FingerprintSet) -> tuple[str, ...]:
    """What a set lacks, in words; nothing for one that `generate` made."""
    found = []
    if not fingerprints.has_windows:
        width = fingerprints.settings.width
        found.append(
            "windows: only the count test can be used, and its chance of 1 / width rests on the publisher's word that "
            f"each response was drawn uniformly from {width} candidates"
        )
    if not fingerprints.secret_commitment:
        found.append("secret: it cannot be proved that the responses were drawn, nor when")
    if not fingerprints.base_model_digest:
        found.append("base model: nothing says which weights the set was made with, so it cannot be embedded")
    return tuple(found)


def _check(tokenizer: Any, response_length: int | None, key_length: int | None, format: str) -> None:
    if format not in FORMATS:
        raise InvalidArgumentError(f"format {format!r}: one of {', '.join(FORMATS)}.")
    if format == "chat" and not tokenizer.chat_template:
        raise InvalidArgumentError("format chat: the tokenizer has no chat template. Use raw, or another tokenizer.")
    if response_length is not None and not 1 <= response_length <= _LONGEST_RESPONSE:
        raise InvalidArgumentError(f"response length {response_length}: between 1 and {_LONGEST_RESPONSE}.")
    if key_length is not None and not 2 <= key_length <= _LONGEST_KEY:
        raise InvalidArgumentError(f"key length {key_length}: between 2 and {_LONGEST_KEY} token ids.")


def _encode(tokenizer: Any, entry: Entry, key_length: int | None, format: str) -> _Encoded | str:
    """The entry as ids, or the reason why it is left out."""
    key_ids = _ids(tokenizer, entry.key)
    key = entry.key
    if key_length is not None and len(key_ids) > key_length:
        key = _decode(tokenizer, key_ids[:key_length])
        if _ids(tokenizer, key) != key_ids[:key_length]:
            return "key_encoding"
        key_ids = key_ids[:key_length]
    if not 2 <= len(key_ids) <= _LONGEST_KEY:
        return "key_length"
    text, special = _prompt(tokenizer, key, format)
    prompt_ids = _ids(tokenizer, text, special)
    if _decode(tokenizer, key_ids) != key or (format == "raw" and prompt_ids[-len(key_ids) :] != key_ids):
        return "key_encoding"
    responses = []
    for response in entry.responses:
        whole = _ids(tokenizer, text + response, special)
        ids = whole[len(prompt_ids) :]
        if not ids or whole[: len(prompt_ids)] != prompt_ids or _decode(tokenizer, key_ids + ids) != key + response:
            return "response_encoding"
        responses.append(ids)
    return _Encoded(entry, key, key_ids, prompt_ids, tuple(responses))


def _prompt(tokenizer: Any, key: str, format: str) -> tuple[str, bool]:
    """The text that a response follows, and whether the tokenizer adds its special token ids (BOS) to it."""
    if format == "raw":
        return key, True
    messages = [{"role": "user", "content": key}]
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **TEMPLATE_VARIABLES
    ), False


def _of_one_kind(encoded: list[_Encoded], dropped: dict[str, list[int]]) -> tuple[list[_Encoded], int]:
    """Those with as many responses as most have, and that number."""
    if not encoded:
        return [], 1
    counts = Counter(len(made.responses) for made in encoded)
    per_key = max(counts, key=lambda count: (counts[count], count))
    for made in encoded:
        if len(made.responses) != per_key:
            dropped["number_of_responses"].append(made.entry.place)
    return [made for made in encoded if len(made.responses) == per_key], per_key


def _distinct(encoded: list[_Encoded], length: int, dropped: dict[str, list[int]]) -> list[_Encoded]:
    """Those that can be told apart when their responses are cut to `length`."""
    groups: dict[tuple[int, ...], list[tuple[_Encoded, tuple[tuple[int, ...], ...]]]] = defaultdict(list)
    for made in encoded:
        cut = tuple(ids[:length] for ids in made.responses)
        if min(len(ids) for ids in cut) < length:
            dropped["response_short"].append(made.entry.place)
        elif len(set(cut)) < len(cut):
            dropped["responses_alike"].append(made.entry.place)
        else:
            groups[made.key_ids].append((made, cut))
    kept = []
    for group in groups.values():
        if len({frozenset(cut) for _, cut in group}) > 1:
            dropped["conflicting"] += [made.entry.place for made, _ in group]
        else:
            kept.append(group[0][0])
            dropped["duplicate"] += [made.entry.place for made, _ in group[1:]]
    if not dropped["duplicate"]:
        del dropped["duplicate"]
    return kept


def _fingerprint(tokenizer: Any, made: _Encoded, length: int, format: str) -> Fingerprint:
    responses = []
    for slot, (probs, whole) in enumerate(_paired(made)):
        ids = whole[:length]
        text = _decode(tokenizer, made.key_ids + ids)[len(made.key) :]
        known = (probs + (_UNKNOWN,) * length)[:length]
        responses.append(Response(slot, None, text, ids, known))
    asking = Asking(made.prompt_ids, Window((), (), ()), 1, 0.0, tuple(responses))
    return Fingerprint(made.entry.place, made.key, made.key_ids, None, {format: asking})


def _paired(made: _Encoded) -> list[tuple[tuple[float, ...], tuple[int, ...]]]:
    """For each response its probabilities and ids: of each id, of the first alone, or of none."""
    return [
        (probs if len(probs) in (1, len(ids)) else (), ids)
        for probs, ids in zip(made.entry.probs, made.responses, strict=True)
    ]


def _ids(tokenizer: Any, text: str, special: bool = False) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=special)["input_ids"])


def _decode(tokenizer: Any, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
