"""Reading a fingerprints file: every field is checked, and an error names the file, the entry and the way out."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from .errors import FingerprintFormatError, InvalidArgumentError
from .fingerprint import FORMAT, Asking, Fingerprint, FingerprintSet, Response, Settings, Window, settings_from

_RESTORE = "Restore the file from its backup, or generate the set again."


def read_set(path: Path) -> FingerprintSet:
    """Read `path` into a FingerprintSet, or raise FingerprintFormatError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FingerprintFormatError(f"no fingerprints file at {path}: make one with oml-fast generate.") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is no text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise FingerprintFormatError(f"{path} cannot be read: {reason}. {_RESTORE}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        message = f"{path} is no fingerprints file, or cut short or damaged ({where}). {_RESTORE}"
        raise FingerprintFormatError(message) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets in thousands
        raise FingerprintFormatError(f"{path} is damaged. {_RESTORE}") from error
    try:
        return _set(_Entry(data, "the file"))
    except _Invalid as error:
        raise FingerprintFormatError(f"{path}: {error}") from error


def fingerprint_from_json(value: Any, settings: Settings) -> Fingerprint:
    """One fingerprint from its JSON object; FingerprintFormatError where it is damaged."""
    try:
        return _fingerprint(_Entry(value, "a fingerprint"), settings, True)
    except _Invalid as error:
        raise FingerprintFormatError(str(error)) from error


class _Invalid(Exception):  # noqa: N818 - never leaves this file
    """What is wrong with an entry; read_set adds the file."""


class _Entry:
    """A JSON object with a name, whose fields are taken with their type checked."""

    def __init__(self, value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise _Invalid(f"{name} is not a JSON object. {_RESTORE}")
        self.value, self.name = value, name

    def take(self, field: str, kind: type | tuple[type, ...]) -> Any:
        if field not in self.value:
            raise _Invalid(f"{self.name} has no {field!r}. {_RESTORE}")
        value = self.value[field]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise _Invalid(f"{self.name}: {field!r} has the wrong type ({type(value).__name__}). {_RESTORE}")
        return value

    def ids(self, field: str) -> tuple[int, ...]:
        values = self.take(field, (list, tuple))
        self.require(all(type(v) is int and 0 <= v < 2**32 for v in values) and values, f"{field!r} must be token ids")
        return tuple(values)

    def probs(self, field: str) -> tuple[float, ...]:
        values = self.take(field, (list, tuple))
        good = all(isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v <= 1 for v in values)
        self.require(good, f"{field!r} must be probabilities")
        return tuple(float(v) for v in values)

    def require(self, condition: Any, problem: str) -> None:
        if not condition:
            raise _Invalid(f"{self.name}: {problem}. {_RESTORE}")


def _set(entry: _Entry) -> FingerprintSet:
    if not {"format", "fingerprints", "settings"} & set(entry.value):
        raise _Invalid("it is no fingerprints file. Name the one that generate wrote, or its folder.")
    version = entry.take("format", int)
    if version > FORMAT:
        raise _Invalid(f"format {version} is newer than this oml_fast reads ({FORMAT}): upgrade oml_fast.")
    entry.require(version == FORMAT, f"format {version} is unknown")
    values = _Entry(entry.take("settings", dict), "settings")
    for setting in fields(Settings):
        values.take(setting.name, object)
    try:
        settings = settings_from(values.value)
    except InvalidArgumentError as error:
        raise _Invalid(f"settings: {error} {_RESTORE}") from error
    texts = {
        n: entry.take(n, str) for n in ("base_model", "base_model_digest", "tokenizer_digest", "secret_commitment")
    }
    drawn = bool(texts["secret_commitment"])
    fingerprints = []
    seen: dict[tuple[int, ...], int] = {}
    numbers: set[int] = set()
    for place, value in enumerate(entry.take("fingerprints", (list, tuple))):
        fingerprint = _fingerprint(_Entry(value, f"fingerprint at place {place}"), settings, drawn)
        if fingerprint.key_ids in seen:
            raise _Invalid(
                f"fingerprints at places {seen[fingerprint.key_ids]} and {place} have the same key ids: "
                "only one of them could be verified. Remove one."
            )
        if fingerprint.number in numbers:
            raise _Invalid(
                f"two fingerprints have the number {fingerprint.number}: one key would count twice. {_RESTORE}"
            )
        numbers.add(fingerprint.number)
        seen[fingerprint.key_ids] = place
        fingerprints.append(fingerprint)
    known = [bool(asking.window.token_ids) for f in fingerprints for asking in f.askings.values()]
    entry.require(all(known) or not any(known), f"{known.count(False)} of its {len(known)} windows are empty")
    return FingerprintSet(settings=settings, fingerprints=tuple(fingerprints), **texts)


def _fingerprint(entry: _Entry, settings: Settings, drawn: bool) -> Fingerprint:
    bits = entry.take("key_bits", (int, float, type(None)))
    entry.require(bits is None or 0 <= bits < 1e6, "'key_bits' is no number of bits")
    number = entry.take("number", int)
    entry.require(0 <= number < 2**32, "'number' is out of range")
    askings = entry.take("askings", dict)
    entry.require(set(askings) == set(settings.formats), f"it is not asked in {list(settings.formats)}")
    return Fingerprint(
        number=number,
        key=entry.take("key", str),
        key_ids=entry.ids("key_ids"),
        key_bits=bits,
        askings={
            name: _asking(_Entry(askings[name], f"{entry.name}, {name}"), settings, drawn) for name in settings.formats
        },
    )


def _asking(entry: _Entry, settings: Settings, drawn: bool) -> Asking:
    """An asking; its window may be empty only where no secret drew from it (`drawn` is false)."""
    of_window = _Entry(entry.take("window", dict), f"{entry.name}, window")
    imported = not drawn and not any(of_window.take(n, (list, tuple)) for n in ("token_ids", "texts", "probs"))
    window = Window((), (), ()) if imported else _window(of_window, settings.width)
    values = entry.take("responses", (list, tuple))
    responses = tuple(
        _response(_Entry(v, f"{entry.name}, response {slot}"), slot, window, settings.response_length)
        for slot, v in enumerate(values)
    )
    entry.require(len(responses) == settings.responses_per_key, f"it has {len(responses)} responses")
    distinct = {r.token_ids if imported else r.index for r in responses}
    entry.require(len(distinct) == len(responses), "two responses are the same candidate")
    mass = entry.take("nucleus_mass", (int, float))
    size = entry.take("nucleus_size", int)
    entry.require(0 <= mass <= 1 and 1 <= size < 2**32, "its nucleus is impossible")
    return Asking(entry.ids("prompt_ids"), window, size, float(mass), responses)


def _window(entry: _Entry, width: int) -> Window:
    window = Window(entry.ids("token_ids"), tuple(entry.take("texts", (list, tuple))), entry.probs("probs"))
    entry.require(all(isinstance(text, str) for text in window.texts), "'texts' must be texts")
    sizes = {len(window.token_ids), len(set(window.token_ids)), len(window.texts), len(window.probs)}
    entry.require(sizes == {width}, f"it does not hold {width} distinct candidates")
    return window


def _response(entry: _Entry, slot: int, window: Window, length: int) -> Response:
    index = entry.take("index", int if window.token_ids else type(None))
    response = Response(
        entry.take("slot", int), index, entry.take("text", str), entry.ids("token_ids"), entry.probs("probs")
    )
    entry.require(response.slot == slot, f"its slot is {response.slot}")
    entry.require(len(response.token_ids) == len(response.probs) == length, f"it does not hold {length} token ids")
    if window.token_ids:
        in_window = 0 <= index < len(window.token_ids) and window.token_ids[index] == response.token_ids[0]
        entry.require(in_window, "it is not the candidate of the window that its index names")
        same_text = length > 1 or window.texts[index] == response.text
        entry.require(same_text, "its text is not that of its candidate in the window")
    return response
