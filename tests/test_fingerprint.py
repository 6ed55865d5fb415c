"""The fingerprints file: what is written is read back, and whatever is damaged is refused with the way out."""

from __future__ import annotations

import copy
import json
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sets import OTHER_SECRET, SECRET, small_set

from oml_fast.errors import FingerprintFormatError, OmlError
from oml_fast.fingerprint import FORMAT, Asking, Fingerprint, FingerprintSet, Response, Settings, Window

BOTH = ("raw", "chat")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fingerprints.json"
    small_set(3, width=4, formats=BOTH, responses_per_key=2, response_length=2).save(path)
    return path


def refused(path: Path) -> str:
    """The message with which the file is refused: one line that names the file."""
    with pytest.raises(FingerprintFormatError) as caught:
        FingerprintSet.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# Writing and reading


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"formats": BOTH, "responses_per_key": 3, "response_length": 5},
        {"threshold": 0, "width": 2, "key_length": 2, "key_source": "words", "template_variables": {"a": [1, None]}},
    ],
    ids=str,
)
def test_what_is_written_is_read(tmp_path: Path, settings: dict[str, Any]) -> None:
    made = small_set(5, **settings)
    made.save(tmp_path / "f.json")
    read = FingerprintSet.load(tmp_path / "f.json")
    assert read == made
    assert read.digest() == made.digest()
    read.save(tmp_path / "g.json")
    assert (tmp_path / "f.json").read_bytes() == (tmp_path / "g.json").read_bytes()


def test_only_the_owner_can_read_the_file(file: Path) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    os.chmod(file, 0o644)
    FingerprintSet.load(file).save(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_digest_sees_every_change() -> None:
    made = small_set(3)
    others = [small_set(3, secret=OTHER_SECRET), small_set(4), small_set(3, seed=1), small_set(3, threshold=0.7)]
    others += [replace(made, base_model_digest="00" * 32), replace(made, fingerprints=made.fingerprints[::-1])]
    assert len({made.digest(), *(other.digest() for other in others)}) == 7


# Damaged files


def test_a_file_cut_short_anywhere_is_refused(file: Path) -> None:
    whole = file.read_bytes()
    places = [*range(0, len(whole) - 2, max(1, len(whole) // 150)), len(whole) - 2]
    for place in places:
        file.write_bytes(whole[:place])
        message = refused(file)
        assert "Restore the file" in message
    file.write_bytes(whole[:-1])  # the last byte is a newline
    FingerprintSet.load(file)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\xfe{}", "Clé".encode("latin-1"), b"[]", b"null", b"3", b'"text"', b"{}", b"{} {}", b"\x00" * 100,
        b"[" * 100_000, b'{"format": 1' + b"0" * 5000 + b"}", b'{"format": NaN}', b"PK\x03\x04",
    ],
    ids=lambda content: repr(content[:12]),
)  # fmt: skip
def test_whatever_is_no_fingerprints_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(content)
    refused(path)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    assert "oml-fast generate" in refused(tmp_path / "none.json")
    refused(tmp_path)


Place = tuple[str | int, ...]


def places(value: Any, path: Place = ()) -> Iterator[Place]:
    """The path of every value in a JSON value."""
    yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*path, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from places(inner, (*path, number))


def at(value: Any, path: Place) -> Any:
    for step in path:
        value = value[step]
    return value


def loaded_or_refused(path: Path) -> FingerprintSet | str:
    """The set, or the message with which it is refused. Any other exception passes and fails the test."""
    try:
        return FingerprintSet.load(path)
    except FingerprintFormatError as error:
        return str(error)


BAD = [None, True, "x", "", -1, 1.5, 2**80, 10**400, math.nan, math.inf, [], [[]], {}, {"x": 1}]


def test_no_value_anywhere_makes_it_stumble(file: Path) -> None:
    """Each value in turn is replaced by each bad one: the file is refused, or it is a set that works."""
    data = json.loads(json.dumps(small_set(1, width=2, responses_per_key=2, key_length=2).to_json()))
    texts = {"key", "text", "texts", "base_model", "base_model_digest", "tokenizer_digest", "secret_commitment"}
    for path in list(places(data))[1:]:
        for bad in BAD:
            damaged = copy.deepcopy(data)
            parent = at(damaged, path[:-1])
            old = parent[path[-1]]
            parent[path[-1]] = bad
            file.write_text(json.dumps(damaged))
            read = loaded_or_refused(file)
            if isinstance(read, str):
                assert str(file) in read
                continue
            free = "template_variables" in path or path[-1] in {"key_temperature", "threshold", "key_bits"}
            kind = isinstance(bad, type(old)) or (isinstance(old, float) and isinstance(bad, int))
            assert free or kind, (path, bad)
            if isinstance(bad, str):
                assert texts & set(path) or "template_variables" in path, (path, bad)
            read.digest()
            try:
                read.check_draws(SECRET)
            except OmlError:
                continue


def test_every_field_is_needed(file: Path) -> None:
    data = json.loads(file.read_text())
    data["fingerprints"] = data["fingerprints"][:1]
    for path in list(places(data))[1:]:
        if "template_variables" in path[:-1]:
            continue
        damaged = copy.deepcopy(data)
        del at(damaged, path[:-1])[path[-1]]
        file.write_text(json.dumps(damaged))
        if path in {("fingerprints", 0)}:
            assert len(FingerprintSet.load(file)) == 0
        elif path[-2:-1] in {("prompt_ids",), ("key_ids",)}:
            FingerprintSet.load(file)  # nothing else in the file says how long these are
        else:
            refused(file)


def asking(data: Any) -> Any:
    return data["fingerprints"][1]["askings"]["chat"]


def set_(place: str, value: Any) -> Any:
    """A change of one value, its place written a.b.c from the second fingerprint's asking in the chat format."""

    def change(data: Any) -> None:
        *path, last = [int(step) if step.isdigit() else step for step in place.split(".")]
        at(asking(data), tuple(path))[last] = value

    return change


def swap_responses(data: Any) -> None:
    asking(data)["responses"].reverse()


def same_candidate_twice(data: Any) -> None:
    asking(data)["responses"][1] = {**asking(data)["responses"][0], "slot": 1}


def repeat_candidate(data: Any) -> None:
    window = asking(data)["window"]
    window["token_ids"][0] = window["token_ids"][1]


def smaller_window(data: Any) -> None:
    for values in asking(data)["window"].values():
        values.pop()


def larger_window(data: Any) -> None:
    window = asking(data)["window"]
    window["token_ids"].append(99_999), window["texts"].append("more"), window["probs"].append(0.01)


def drop_format(data: Any) -> None:
    del data["fingerprints"][1]["askings"]["raw"]


def unknown_format(data: Any) -> None:
    data["fingerprints"][1]["askings"]["other"] = asking(data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_("responses.0.index", 3_000), "index"),
        (set_("responses.0.index", -1), "index"),
        (set_("responses.0.token_ids", [4, 4]), "index"),
        (set_("responses.0.token_ids", [4]), "2 token ids"),
        (set_("responses.0.probs", [0.5]), "2 token ids"),
        (set_("responses.0.probs", [0.5, 1.5]), "probabilities"),
        (set_("responses", []), "0 responses"),
        (set_("window.texts", ["a", "b", "c"]), "4 distinct"),
        (set_("window.probs", [0.1] * 5), "4 distinct"),
        (set_("nucleus_mass", 1.1), "nucleus"),
        (set_("nucleus_size", 0), "nucleus"),
        (set_("prompt_ids", []), "prompt_ids"),
        (set_("prompt_ids", [1.0]), "prompt_ids"),
        (swap_responses, "slot"),
        (same_candidate_twice, "same candidate"),
        (repeat_candidate, "4 distinct"),
        (smaller_window, "4 distinct"),
        (larger_window, "4 distinct"),
        (drop_format, "not asked in"),
        (unknown_format, "not asked in"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_damaged_fingerprint_is_refused_and_named(file: Path, change: Any, words: str) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    message = refused(file)
    assert "fingerprint at place 1" in message
    assert words in message


def test_a_newer_format_says_upgrade(file: Path) -> None:
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, "format": FORMAT + 1}))
    assert "upgrade oml_fast" in refused(file)
    file.write_text(json.dumps({**data, "format": 0}))
    assert "unknown" in refused(file)


def test_a_newer_format_is_said_before_anything_else_is_read(file: Path) -> None:
    file.write_text(json.dumps({"format": FORMAT + 7, "all": "different"}))
    assert "upgrade oml_fast" in refused(file)


def test_two_fingerprints_with_the_same_key_ids_are_refused(file: Path) -> None:
    data = json.loads(file.read_text())
    data["fingerprints"][2]["key_ids"] = data["fingerprints"][0]["key_ids"]
    file.write_text(json.dumps(data))
    message = refused(file)
    assert "places 0 and 2" in message
    assert "key ids" in message


def test_unknown_and_impossible_settings_in_a_file_are_refused(file: Path) -> None:
    data = json.loads(file.read_text())
    for change in ({"nucleus": 1}, {"width": 1}, {"width": "16"}, {"formats": 3}, {"formats": ["raw", "raw"]}):
        file.write_text(json.dumps({**data, "settings": {**data["settings"], **change}}))
        assert "settings" in refused(file)


def test_refusals_hold_nothing_secret(file: Path) -> None:
    """No key, candidate or response stands in a message."""
    data = json.loads(file.read_text())
    made = FingerprintSet.load(file)
    secrets = [text for f in made for text in (f.key, *(t for a in f.askings.values() for t in a.window.texts))]
    for path in list(places(data))[1:]:
        damaged = copy.deepcopy(data)
        at(damaged, path[:-1])[path[-1]] = None
        file.write_text(json.dumps(damaged, ensure_ascii=False))
        outcome = loaded_or_refused(file)
        assert not isinstance(outcome, str) or not any(secret in outcome for secret in secrets)


# Sets without windows


def without_windows(data: Any) -> Any:
    """As an import leaves a set: nobody knows its windows, its secret and its base model."""
    data |= {"secret_commitment": "", "base_model_digest": ""}
    for fingerprint in data["fingerprints"]:
        for found in fingerprint["askings"].values():
            found["window"] = {"token_ids": [], "texts": [], "probs": []}
            found["responses"] = [{**response, "index": None} for response in found["responses"]]
    return data


def test_a_set_without_windows_is_read(file: Path) -> None:
    assert FingerprintSet.load(file).has_windows
    file.write_text(json.dumps(without_windows(json.loads(file.read_text()))))
    read = FingerprintSet.load(file)
    assert not read.has_windows
    read.save(file)
    assert FingerprintSet.load(file) == read
    with pytest.raises(FingerprintFormatError, match="imported"):
        read.check_draws(SECRET)


def one_window(data: Any) -> None:
    kept = json.loads(json.dumps(small_set(1, width=4, formats=BOTH, responses_per_key=2, response_length=2).to_json()))
    data["fingerprints"][0]["askings"] = kept["fingerprints"][0]["askings"]


def with_a_secret(data: Any) -> None:
    data["secret_commitment"] = "ab" * 32


def half_a_window(data: Any) -> None:
    asking(data)["window"]["texts"] = ["a"]


def with_an_index(data: Any) -> None:
    asking(data)["responses"][0]["index"] = 0


def same_response_twice(data: Any) -> None:
    asking(data)["responses"][1] = {**asking(data)["responses"][0], "slot": 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (one_window, "windows are empty"),
        (with_a_secret, "token_ids"),
        (half_a_window, "token_ids"),
        (with_an_index, "'index' has the wrong type"),
        (same_response_twice, "same candidate"),
    ],
)
def test_windows_are_empty_in_all_of_an_imported_set_or_nowhere(file: Path, change: Any, words: str) -> None:
    data = without_windows(json.loads(file.read_text()))
    change(data)
    file.write_text(json.dumps(data))
    assert words in refused(file)


def test_an_empty_window_in_a_set_of_ours_is_refused(file: Path) -> None:
    data = json.loads(file.read_text())
    asking(data)["window"] = {"token_ids": [], "texts": [], "probs": []}
    file.write_text(json.dumps(data))
    refused(file)


def test_the_digest_of_a_set_of_ours_is_what_it_was() -> None:
    """It is committed to: a change of the layout must not change it."""
    window = Window((5, 6, 7), (" a", " é", " c"), (0.25, 0.125, 0.0625))
    made = Asking((1, 2, 3), window, 9, 0.8125, (Response(0, 1, " é", (6,), (0.125,)),))
    one = Fingerprint(4, "clé", (2, 3), 40.5, {"raw": made})
    settings = Settings(width=3, template_variables={"date_string": "01 Jan 2026"})
    digest = FingerprintSet(settings, "base", "cd" * 32, "ab" * 32, "ef" * 32, (one,)).digest()
    assert digest == "824b9d67679e6f2b1fc3d0f9871245763208604c9c7b0799fe550b284147d998"


def test_the_text_of_a_response_is_its_candidates(tmp_path: Path) -> None:
    """Endpoints answer in text: a response whose text was edited could match what the draw never gave."""
    file = tmp_path / "f.json"
    small_set(2, width=4).save(file)
    data = json.loads(file.read_text())
    data["fingerprints"][1]["askings"]["raw"]["responses"][0]["text"] = " edited"
    file.write_text(json.dumps(data))
    assert "fingerprint at place 1, raw, response 0: its text is not that of its candidate" in refused(file)
