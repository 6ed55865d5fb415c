"""A commitment fixes set, order, secret, models and terms; an opening is checked with the commitment alone."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sets import OTHER_SECRET, SECRET, small_set

from oml_fast.commit import (
    Commitment,
    CommitmentError,
    OpenedLeaf,
    Opening,
    Terms,
    asking_order,
    check_opening,
    commit,
    open_leaves,
    require_commitment,
)
from oml_fast.commit.commitment import TESTS, entries
from oml_fast.errors import FingerprintFormatError, InvalidArgumentError
from oml_fast.fingerprint import FingerprintSet
from oml_fast.secret import salt

NOW = datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC)
MODEL = "ef" * 32
SET = small_set(11, formats=("raw", "chat"), responses_per_key=2, response_length=3)
COMMITMENT = commit(SET, SECRET, Terms(), MODEL, at=NOW)
ORDER = asking_order(SET, SECRET)
JSON = COMMITMENT.to_json()
ASKED = ORDER[:4]
OPENING = open_leaves(COMMITMENT, SET, SECRET, ASKED)


def differs(
    fingerprints: FingerprintSet = SET, secret: bytes = SECRET, commitment: Commitment = COMMITMENT, **more: Any
) -> str:
    with pytest.raises((CommitmentError, FingerprintFormatError)) as caught:
        require_commitment(commitment, fingerprints, secret, **more)
    assert SECRET.hex() not in str(caught.value)
    return str(caught.value)


def unread(value: Any, kind: type[Commitment] | type[Opening] = Commitment) -> str:
    with pytest.raises(CommitmentError) as caught:
        kind.from_json(value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def unopened(opening: Opening, commitment: Commitment = COMMITMENT) -> str:
    with pytest.raises(CommitmentError) as caught:
        check_opening(commitment, opening)
    assert not any(f.key in str(caught.value) for f in SET)
    return str(caught.value)


def changed_leaf(place: int = 0, **values: Any) -> Opening:
    leaves = list(OPENING.leaves)
    leaves[place] = replace(leaves[place], **values)
    return replace(OPENING, leaves=tuple(leaves))


def test_a_commitment_holds_what_it_is_to_and_nothing_secret() -> None:
    text = json.dumps(JSON)
    assert (JSON["num_fingerprints"], JSON["created"], JSON["model_digest"]) == (11, "2026-01-31T23:59:59Z", MODEL)
    assert JSON["secret_commitment"] == SET.secret_commitment
    assert JSON["terms"] == {
        "match_rule": "exact", "test": "auto", "mode": "sequential", "false_positive_rate": 1e-6, "smallest_fsr": 0.5,
        "miss_rate": 0.01, "num_keys": None,
    }  # fmt: skip
    assert SECRET.hex() not in text
    assert not any(fingerprint.key in text for fingerprint in SET)


def test_it_is_the_same_again_and_after_a_file(tmp_path: Path) -> None:
    assert commit(SET, SECRET, Terms(), MODEL, at=NOW.astimezone(timezone(timedelta(hours=5)))) == COMMITMENT
    COMMITMENT.save(tmp_path / "commitment.json")
    assert Commitment.load(tmp_path / "commitment.json") == COMMITMENT
    SET.save(tmp_path / "fingerprints.json")
    require_commitment(COMMITMENT, FingerprintSet.load(tmp_path / "fingerprints.json"), SECRET)


def test_now_is_the_time_by_default() -> None:
    made = datetime.strptime(commit(SET, SECRET, Terms(), MODEL).created, "%Y-%m-%dT%H:%M:%S%z")
    assert abs((datetime.now(UTC) - made).total_seconds()) < 60


def test_a_commitment_is_never_overwritten(tmp_path: Path) -> None:
    COMMITMENT.save(tmp_path / "c.json")
    with pytest.raises(InvalidArgumentError, match="never overwritten"):
        COMMITMENT.save(tmp_path / "c.json")


def test_the_order_is_the_secret_s_alone() -> None:
    assert sorted(ORDER) == list(range(11))
    assert list(ORDER) != sorted(ORDER)
    assert asking_order(small_set(11, seed=5), SECRET) == ORDER
    assert asking_order(replace(SET, fingerprints=SET.fingerprints[::-1]), SECRET) == ORDER
    assert asking_order(small_set(11, secret=OTHER_SECRET), OTHER_SECRET) != ORDER
    part = replace(SET, fingerprints=SET.fingerprints[3:])
    assert asking_order(part, SECRET) == tuple(number for number in ORDER if number >= 3)


def test_the_order_is_uniform_in_its_first_place() -> None:
    counts = [0] * 4
    for each in range(400):
        secret = each.to_bytes(32, "big")
        counts[asking_order(small_set(4, secret=secret, key_length=2), secret)[0]] += 1
    assert min(counts) > 60  # 100 expected; below 60 has a probability under 1e-5


def test_leaves_stand_in_the_order_of_asking_each_behind_its_own_salt() -> None:
    made = entries(SET, SECRET)
    assert tuple(number for number, _ in made) == ORDER
    assert len({entry[:32] for _, entry in made}) == 11
    assert all(entry[:32] == salt(SECRET, entry[32:]) for _, entry in made)
    other = entries(small_set(11, seed=5, formats=("raw", "chat"), responses_per_key=2, response_length=3), SECRET)
    assert not {entry[:32] for _, entry in made} & {entry[:32] for _, entry in other}


def test_what_was_committed_to_passes() -> None:
    require_commitment(COMMITMENT, SET, SECRET)
    require_commitment(COMMITMENT, SET, SECRET, terms=Terms(), model_digest=MODEL)
    require_commitment(COMMITMENT, replace(SET, fingerprints=SET.fingerprints[::-1]), SECRET)


def test_another_secret_is_caught() -> None:
    assert "another secret" in differs(secret=OTHER_SECRET)
    redrawn = small_set(11, secret=OTHER_SECRET, formats=("raw", "chat"), responses_per_key=2, response_length=3)
    assert "another secret" in differs(redrawn, OTHER_SECRET)
    assert "secret" in differs(redrawn)


def change(**values: Any) -> FingerprintSet:
    first = SET.fingerprints[0]
    return replace(SET, fingerprints=(replace(first, **values), *SET.fingerprints[1:]))


def swapped(response: dict[str, Any]) -> FingerprintSet:
    asking = SET.fingerprints[0].askings["raw"]
    responses = (replace(asking.responses[0], **response), asking.responses[1])
    return change(askings={**SET.fingerprints[0].askings, "raw": replace(asking, responses=responses)})


@pytest.mark.parametrize(
    "fingerprints",
    [
        change(key="another"), change(key_bits=55.25), change(key_ids=(1, 2, 3)), change(number=77),
        swapped({"text": "another"}), swapped({"probs": (0.01, 0.01, 0.02)}),
        replace(SET, fingerprints=SET.fingerprints[1:]),
        replace(SET, fingerprints=(replace(SET.fingerprints[0], number=1), replace(SET.fingerprints[1], number=0),
                                   *SET.fingerprints[2:])),
        small_set(11, seed=1, formats=("raw", "chat"), responses_per_key=2, response_length=3),
    ],
)  # fmt: skip
def test_a_changed_added_or_missing_leaf_is_caught(fingerprints: FingerprintSet) -> None:
    assert "merkle_root" in differs(fingerprints)


def test_a_changed_base_model_tokenizer_or_setting_is_caught() -> None:
    assert "base_model_digest" in differs(replace(SET, base_model_digest="00" * 32))
    assert "tokenizer_digest" in differs(replace(SET, tokenizer_digest="00" * 32))
    other = small_set(11, formats=("raw", "chat"), responses_per_key=2, response_length=3, width=17)
    assert "width" in differs(other)


@pytest.mark.parametrize(
    "terms",
    [
        Terms("prefix"), Terms("within-8"), Terms(test="window"), Terms(mode="fixed"), Terms(false_positive_rate=1e-4),
        Terms(smallest_fsr=0.25), Terms(miss_rate=0.1), Terms(num_keys=11),
    ],
)  # fmt: skip
def test_another_rule_is_caught_and_named(terms: Terms) -> None:
    (name,) = [name for name in JSON["terms"] if getattr(terms, name) != JSON["terms"][name]]
    assert f"terms.{name}" in differs(terms=terms)
    assert commit(SET, SECRET, terms, MODEL, at=NOW).digest() != COMMITMENT.digest()


def test_another_model_is_caught() -> None:
    assert "model_digest" in differs(model_digest="00" * 32)


def test_another_order_has_another_root() -> None:
    from oml_fast.commit.merkle import Tree

    shuffled = [entry for _, entry in entries(SET, SECRET)][::-1]
    other = replace(COMMITMENT, merkle_root=Tree(shuffled).root.hex())
    assert "merkle_root" in differs(commitment=other)


def test_grinding_shows_in_the_digest() -> None:
    """Whoever picks another set, secret, order or rule afterwards has another digest than the one timestamped."""
    made = {COMMITMENT.digest()}
    for seed in range(5):
        secret = bytes([seed]) * 32
        made.add(commit(small_set(11, secret=secret), secret, Terms(), MODEL, at=NOW).digest())
        made.add(commit(small_set(11, seed=seed + 1), SECRET, Terms(), MODEL, at=NOW).digest())
    assert len(made) == 11


@pytest.mark.parametrize("name", [name for name in JSON if name not in ("terms", "format")])
def test_every_field_is_in_the_digest(name: str) -> None:
    value = JSON[name]
    other = {int: lambda: value + 1, str: lambda: value[::-1], list: lambda: ["raw"]}[type(value)]()
    if name == "created":
        other = "2025-01-31T23:59:59Z"
    if name.endswith("digest"):
        other = "12" * 32
    assert Commitment.from_json({**JSON, name: other}).digest() != COMMITMENT.digest()


def test_what_cannot_be_committed_to_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="empty"):
        commit(replace(SET, fingerprints=()), SECRET, Terms(), MODEL)
    with pytest.raises(InvalidArgumentError, match="same number"):
        commit(change(number=3), SECRET, Terms(), MODEL)
    with pytest.raises(InvalidArgumentError, match="imported"):
        commit(replace(SET, secret_commitment=""), SECRET, Terms(), MODEL)
    with pytest.raises(FingerprintFormatError, match="secret"):
        commit(SET, OTHER_SECRET, Terms(), MODEL)
    with pytest.raises(InvalidArgumentError, match="model digest"):
        commit(SET, SECRET, Terms(), "the model")
    with pytest.raises(InvalidArgumentError, match="zone"):
        commit(SET, SECRET, Terms(), MODEL, at=datetime(2026, 1, 1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"match_rule": "within-0"}, {"match_rule": "within-08"}, {"match_rule": "Exact"}, {"match_rule": ""},
        {"match_rule": None}, {"test": "best"}, {"mode": "forever"}, {"false_positive_rate": 0.0},
        {"false_positive_rate": 1.0}, {"false_positive_rate": float("nan")}, {"smallest_fsr": "0.5"}, {"miss_rate": 1},
        {"miss_rate": True}, {"num_keys": 0}, {"num_keys": True}, {"num_keys": 1.0},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_terms_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        Terms(**wrong)
    unread({**JSON, "terms": {**JSON["terms"], **wrong}})


@pytest.mark.parametrize("test", TESTS)
def test_every_test_can_be_committed_to(test: str) -> None:
    assert Commitment.from_json(commit(SET, SECRET, Terms(test=test), MODEL).to_json()).terms.test == test


@pytest.mark.parametrize("name", JSON)
def test_a_missing_unknown_or_damaged_field_is_refused(name: str) -> None:
    assert name in unread({key: value for key, value in JSON.items() if key != name})
    assert "unknown" in unread({**JSON, name + "_": 1})
    for value in (None, True, -1, 1.5, "", "00" * 31, [], ["raw", "raw"], {}, [None], "\n" * 64):
        unread({**JSON, name: value})


@pytest.mark.parametrize(
    "created", ["2026-01-31", "2026-02-30T00:00:00Z", "2026-01-31T23:59:59", "2026-1-31T23:59:59Z"]
)
def test_a_time_is_written_in_one_way(created: str) -> None:
    assert "created" in unread({**JSON, "created": created})


@pytest.mark.parametrize("value", [None, [], "", 1])
def test_what_is_no_commitment_is_refused(value: Any) -> None:
    unread(value)
    unread({**JSON, "terms": value})


@pytest.mark.parametrize("kind", [Commitment, Opening])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"format": 1, "format": 1}', b"NaN", b"[" * 100_000])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, kind: type[Commitment] | type[Opening]) -> None:
    (tmp_path / "c.json").write_bytes(content)
    for path in (tmp_path / "c.json", tmp_path / "none", tmp_path):
        with pytest.raises(CommitmentError, match=str(path)):
            kind.load(path)


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    OPENING.save(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes().rstrip()
    for place in range(0, len(whole), len(whole) // 20):
        (tmp_path / "cut").write_bytes(whole[:place])
        with pytest.raises(CommitmentError):
            Opening.load(tmp_path / "cut")


def test_an_opening_gives_the_asked_fingerprints_without_set_or_secret(tmp_path: Path) -> None:
    OPENING.save(tmp_path / "opening.json")
    assert stat.S_IMODE((tmp_path / "opening.json").stat().st_mode) == 0o600
    found = check_opening(Commitment.from_json(json.loads(json.dumps(JSON))), Opening.load(tmp_path / "opening.json"))
    by_number = {fingerprint.number: fingerprint for fingerprint in SET}
    assert list(found.items()) == [(index, by_number[number]) for index, number in enumerate(ASKED)]


def test_an_opening_opens_what_was_asked_and_no_more() -> None:
    text = json.dumps(OPENING.to_json(), ensure_ascii=False)
    for fingerprint in SET:
        assert (fingerprint.key + '\\"' in text) == (fingerprint.number in ASKED)
    assert SECRET.hex() not in text
    known = [(number, entry) for number, entry in entries(SET, SECRET) if number not in ASKED]
    assert not any(entry[:32].hex() in text for _, entry in known)


@given(numbers=st.sets(st.integers(0, 10), min_size=1), count=st.just(11))
def test_any_leaves_can_be_opened_in_any_order(numbers: set[int], count: int) -> None:
    found = check_opening(COMMITMENT, open_leaves(COMMITMENT, SET, SECRET, numbers))
    assert {index: fingerprint.number for index, fingerprint in found.items()} == {
        index: number for index, number in enumerate(ORDER) if number in numbers
    }
    assert list(found) == sorted(found)
    assert max(found) < count


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 9])
def test_sets_of_every_size_are_opened_whole(count: int) -> None:
    fingerprints = small_set(count)
    commitment = commit(fingerprints, SECRET, Terms(), MODEL)
    opening = open_leaves(commitment, fingerprints, SECRET, range(count))
    assert {fingerprint.number for fingerprint in check_opening(commitment, opening).values()} == set(range(count))


def test_what_cannot_be_opened_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="no number"):
        open_leaves(COMMITMENT, SET, SECRET, [])
    for number in (-1, 11, 10**9):
        with pytest.raises(InvalidArgumentError, match=f"number {number}"):
            open_leaves(COMMITMENT, SET, SECRET, [0, number])
    with pytest.raises(CommitmentError, match="merkle_root"):
        open_leaves(COMMITMENT, change(key="another"), SECRET, [0])
    with pytest.raises(CommitmentError, match="another secret"):
        open_leaves(COMMITMENT, SET, OTHER_SECRET, [0])


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace('"key":"Clé', '"key":"Cle', 1),
        lambda text: text.replace('"slot":0', '"slot":1', 1),
        lambda text: text.replace("0.01", "0.02", 1),
        lambda text: text + " ",
        lambda text: text[:-1],
        lambda text: "",
    ],
)
def test_a_leaf_changed_anywhere_is_refused(edit: Callable[[str], str]) -> None:
    content = edit(OPENING.leaves[1].content)
    assert content != OPENING.leaves[1].content
    assert f"leaf {OPENING.leaves[1].index}" in unopened(changed_leaf(1, content=content))


def test_a_changed_salt_place_or_proof_is_refused() -> None:
    leaf = OPENING.leaves[0]
    unopened(changed_leaf(salt="00" * 32))
    unopened(changed_leaf(salt=OPENING.leaves[1].salt))
    unopened(changed_leaf(proof=leaf.proof[:-1]))
    unopened(changed_leaf(proof=(*leaf.proof, "00" * 32)))
    unopened(changed_leaf(proof=leaf.proof[::-1]))
    unopened(changed_leaf(proof=()))
    for index in (4, 5, 10, 11, -1, 2**64):
        unopened(changed_leaf(index=index))


def test_leaves_that_change_places_are_refused() -> None:
    first, second, *_ = OPENING.leaves
    unopened(replace(OPENING, leaves=(replace(first, index=second.index), replace(second, index=first.index))))


@pytest.mark.parametrize("salt", ["", "00", "00" * 31, "00" * 33, "zz" * 32])
def test_a_salt_has_its_length(salt: str) -> None:
    """Otherwise the same entry could be cut into salt and content in two ways."""
    with pytest.raises(CommitmentError, match="damaged"):
        changed_leaf(salt=salt)


def test_a_leaf_opened_twice_and_none_at_all_are_refused() -> None:
    assert "twice" in unopened(replace(OPENING, leaves=(*OPENING.leaves, OPENING.leaves[0])))
    assert "no leaf" in unopened(replace(OPENING, leaves=()))


def test_an_opening_for_another_commitment_is_refused() -> None:
    unopened(replace(OPENING, commitment="00" * 32))
    for other in (
        replace(COMMITMENT, terms=Terms("prefix")),
        replace(COMMITMENT, merkle_root="00" * 32),
        replace(COMMITMENT, num_fingerprints=12),
        replace(COMMITMENT, created="2026-01-31T23:59:58Z"),
    ):
        assert "another commitment" in unopened(OPENING, other)
        unopened(replace(OPENING, commitment=other.digest()), replace(other, created="2020-01-01T00:00:00Z"))
    forged = replace(COMMITMENT, merkle_root="00" * 32)
    assert "not in the committed tree" in unopened(replace(OPENING, commitment=forged.digest()), forged)


def committed(contents: list[str]) -> tuple[Commitment, Opening]:
    """A commitment to these leaves, whatever they hold, and its opening: what a dishonest owner could make."""
    from oml_fast.commit.merkle import Tree

    tree = Tree([bytes(32) + content.encode() for content in contents])
    commitment = replace(COMMITMENT, merkle_root=tree.root.hex(), num_fingerprints=len(contents))
    leaves = [
        OpenedLeaf(index, "00" * 32, content, tuple(digest.hex() for digest in tree.proof(index)))
        for index, content in enumerate(contents)
    ]
    return commitment, Opening(commitment.digest(), tuple(leaves))


GOOD = OPENING.leaves[0].content


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "null", "{}", GOOD + " ", " " + GOOD, GOOD.replace(":", ": ", 1), GOOD[:-1] + ',"more":1}',
        GOOD[:-1] + ',"number":0}', '{"number":0,' + GOOD[1:], GOOD.replace("0.01", "1e-2", 1),
        GOOD.replace('"index":', '"index":1', 1), GOOD.replace('"raw"', '"row"', 1), GOOD.replace("0.81", "NaN", 1),
        GOOD.replace("é", r"\u00e9", 1),
    ],
)  # fmt: skip
def test_a_committed_leaf_that_can_be_read_in_two_ways_is_refused(content: str) -> None:
    commitment, opening = committed([GOOD, content])
    assert "leaf 1 was committed to, but" in unopened(opening, commitment)


def test_a_key_committed_to_twice_is_refused() -> None:
    commitment, opening = committed([GOOD, GOOD])
    assert "same key" in unopened(opening, commitment)


@pytest.mark.parametrize("name", ["format", "commitment", "leaves"])
def test_a_damaged_opening_is_refused(name: str) -> None:
    value = OPENING.to_json()
    assert Opening.from_json(value) == OPENING
    assert name in unread({key: each for key, each in value.items() if key != name}, Opening)
    unread({**value, "more": 1}, Opening)
    for wrong in (None, True, 2, "", {}, [1], [[]], [{}], "00" * 31, "\ud800"):
        unread({**value, name: wrong}, Opening)


@pytest.mark.parametrize("name", ["index", "salt", "content", "proof"])
def test_a_damaged_leaf_is_refused(name: str) -> None:
    value = OPENING.to_json()
    leaf = value["leaves"][0]
    for wrong in (None, True, 1.0, "\ud800", {}, [1], ["00"], ["00" * 32] * 33):
        unread({**value, "leaves": [{**leaf, name: wrong}]}, Opening)
    unread({**value, "leaves": [{key: each for key, each in leaf.items() if key != name}]}, Opening)
    unread({**value, "leaves": [{**leaf, name + "_": 1}]}, Opening)
