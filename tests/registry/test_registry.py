"""Licensees, sets and models: what is recorded, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sets import SECRET, small_set
from sqlalchemy import text

from oml_fast.errors import InvalidArgumentError
from oml_fast.fingerprint import FingerprintSet
from oml_fast.registry import KeyCount, LicenseeRecord, ModelRecord, Registry
from oml_fast.secret import commitment

MODEL = "ef" * 32


@pytest.fixture
def fingerprints() -> FingerprintSet:
    return small_set(8)


def test_a_set_is_recorded_by_numbers_and_digests(registry: Registry, fingerprints: FingerprintSet) -> None:
    registry.add_licensee("Acme", "by contract 7")
    record = registry.add_set(fingerprints, licensee="Acme")
    assert registry.sets() == registry.sets("Acme") == (record,)
    assert (record.digest, record.num_fingerprints) == (fingerprints.digest(), 8)
    assert (record.base_model, record.base_model_digest, record.tokenizer_digest) == ("base", "cd" * 32, "ab" * 32)
    assert record.secret_commitment == commitment(SECRET)
    assert (record.licensee, record.added_at) == ("Acme", "2026-11-22T12:00:00+00:00")
    assert registry.licensees() == (LicenseeRecord("Acme", "by contract 7", "2026-11-22T12:00:00+00:00", 1),)
    assert registry.sets("Other") == ()


def test_a_set_is_added_once(registry: Registry, fingerprints: FingerprintSet) -> None:
    assert registry.add_set(fingerprints) == registry.add_set(fingerprints)
    assert registry.key_counts() == (KeyCount(fingerprints.digest(), None, 8, 8, 0, None),)


def test_no_two_licensees_have_one_name(registry: Registry) -> None:
    registry.add_licensee("Acme")
    with pytest.raises(InvalidArgumentError, match=r"'Acme' is there already: choose another name"):
        registry.add_licensee("Acme", "another")
    assert [record.note for record in registry.licensees()] == [""]


@pytest.mark.parametrize("name", ["", "  ", "two\nlines", "a\0b", "x" * 201, "https://me:hush@host/v1"])
def test_names_that_cannot_be_shown_are_refused(registry: Registry, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"a licensee's name (cannot be|has|holds)") as caught:
        registry.add_licensee(name)
    assert "hush" not in str(caught.value)
    with pytest.raises(InvalidArgumentError, match="a suspect's name"):
        registry.attempt(small_set(2), suspect=name * 21)
    assert registry.licensees() == registry.sets() == ()


def test_a_note_is_one_line(registry: Registry) -> None:
    with pytest.raises(InvalidArgumentError, match="a note cannot be"):
        registry.add_licensee("Acme", "one\ntwo")


def test_an_unknown_licensee_is_refused(registry: Registry, fingerprints: FingerprintSet) -> None:
    with pytest.raises(InvalidArgumentError, match=r"'Acme' is not in the registry: oml-fast registry add-licensee"):
        registry.add_set(fingerprints, licensee="Acme")
    assert registry.sets() == ()


def test_a_set_is_not_given_to_two_licensees(registry: Registry, fingerprints: FingerprintSet) -> None:
    for name in ("Acme", "Other"):
        registry.add_licensee(name)
    registry.add_set(fingerprints, licensee="Acme")
    with pytest.raises(InvalidArgumentError, match=r"belongs to 'Acme', not to 'Other': generate a set of its own"):
        registry.add_set(fingerprints, licensee="Other")
    assert registry.add_set(fingerprints).licensee == "Acme"
    assert registry.add_set(fingerprints, licensee="Acme").licensee == "Acme"


def test_a_set_becomes_a_licensee_s_before_it_is_embedded(registry: Registry, fingerprints: FingerprintSet) -> None:
    registry.add_licensee("Acme")
    registry.add_set(fingerprints)
    assert registry.add_set(fingerprints, licensee="Acme").licensee == "Acme"


def test_not_after_a_model_with_it_is_recorded(registry: Registry, fingerprints: FingerprintSet) -> None:
    registry.add_licensee("Acme")
    registry.add_set(fingerprints)
    registry.add_model(MODEL, fingerprints.digest(), "models/one")
    with pytest.raises(InvalidArgumentError, match=r"in the model models/one already: .*before it is embedded"):
        registry.add_set(fingerprints, licensee="Acme")
    assert registry.sets()[0].licensee is None


def test_not_after_a_key_is_spent(registry: Registry, fingerprints: FingerprintSet) -> None:
    registry.add_licensee("Acme")
    registry.attempt(fingerprints, suspect="them").take(1)
    with pytest.raises(InvalidArgumentError, match="keys of it are spent already"):
        registry.add_set(fingerprints, licensee="Acme")


def test_models_are_recorded_once(registry: Registry, fingerprints: FingerprintSet) -> None:
    registry.add_licensee("Acme")
    registry.add_set(fingerprints, licensee="Acme")
    for _ in range(2):
        registry.add_model(MODEL, fingerprints.digest(), "models/one")
    other = registry.add_set(small_set(4, seed=1)).digest
    registry.add_model("01" * 32, other, "hub-name")
    record = ModelRecord(MODEL, fingerprints.digest(), "models/one", "Acme", "2026-11-22T12:00:00+00:00")
    assert registry.models(fingerprints.digest()) == (record,)
    assert len(registry.models()) == 2


def test_models_that_are_refused(registry: Registry, fingerprints: FingerprintSet) -> None:
    with pytest.raises(InvalidArgumentError, match="is not in the registry: add it first"):
        registry.add_model(MODEL, fingerprints.digest(), "models/one")
    registry.add_set(fingerprints)
    for digest in ("", "ef", MODEL.upper(), MODEL + "0"):
        with pytest.raises(InvalidArgumentError, match="64 hexadecimal digits"):
            registry.add_model(digest, fingerprints.digest(), "models/one")
    with pytest.raises(InvalidArgumentError, match="is the base model of the set"):
        registry.add_model("cd" * 32, fingerprints.digest(), "models/base")
    with pytest.raises(InvalidArgumentError, match="path or name cannot be ''"):
        registry.add_model(MODEL, fingerprints.digest(), "")
    assert registry.models() == ()


def test_a_set_is_found_by_how_its_digest_begins(registry: Registry) -> None:
    first, second = (registry.add_set(small_set(4, seed=seed)) for seed in (0, 1))
    assert registry.find_set(first.digest) == registry.find_set(first.digest[:12]) == first
    assert registry.find_set(second.digest[:12]) == second
    for unknown in ("", "zz", first.digest + "0"):
        with pytest.raises(
            InvalidArgumentError, match=r"no set .* begins with .*: add it first, with oml-fast registry"
        ):
            registry.find_set(unknown)


def test_a_beginning_that_several_digests_have_is_refused(registry: Registry) -> None:
    begins = [registry.add_set(small_set(2, seed=seed)).digest[0] for seed in range(17)]
    common = max(begins, key=begins.count)
    with pytest.raises(InvalidArgumentError, match=rf"sets of the registry .* begin with '{common}': name more of it"):
        registry.find_set(common)


def test_sets_without_an_order_of_numbers_are_refused(registry: Registry, fingerprints: FingerprintSet) -> None:
    twice = replace(fingerprints, fingerprints=fingerprints.fingerprints[:1] * 2)
    for wrong in (twice, replace(fingerprints, fingerprints=())):
        with pytest.raises(InvalidArgumentError, match="without fingerprints, or with two of one number"):
            registry.add_set(wrong)


ORDERS = [
    ([*range(7)], "lacks key 7"),
    ([*range(8), 8], "names key 8"),
    ([*range(8), 0], "names a key twice"),
    ([0, 0, 1, 2, 3, 4, 5, 6], "lacks key 7"),
    ([*range(7), -1], "lacks key 7"),
    ([], "lacks key 0"),
]


@pytest.mark.parametrize(("order", "why"), ORDERS)
def test_wrong_orders_are_refused(registry: Registry, fingerprints: FingerprintSet, order: list[int], why: str) -> None:
    with pytest.raises(InvalidArgumentError, match=why):
        registry.add_set(fingerprints, order=order)
    with pytest.raises(InvalidArgumentError, match=why):
        registry.attempt(fingerprints, suspect="them", order=order)
    assert registry.sets() == ()


def test_by_hand_keys_are_spent_for_one_or_for_everyone(registry: Registry, fingerprints: FingerprintSet) -> None:
    digest = registry.add_set(fingerprints).digest
    assert registry.spend(digest, [0, 1, 1], suspect="court") == 2
    assert registry.spend(digest, [1, 2]) == 1
    assert registry.key_counts(suspect="court") == (KeyCount(digest, None, 8, 5, 3, 3),)
    assert registry.key_counts(suspect="them") == (KeyCount(digest, None, 8, 5, 3, 2),)
    assert registry.attempt(fingerprints, suspect="them").take(8) == (3, 4, 5, 6, 7)


def test_by_hand_only_keys_of_the_set_are_spent(registry: Registry, fingerprints: FingerprintSet) -> None:
    with pytest.raises(InvalidArgumentError, match="is not in the registry"):
        registry.spend("ab" * 32, [0])
    digest = registry.add_set(fingerprints).digest
    for numbers, why in (([], "no keys to mark"), ([0, 8], "has no key 8"), ([-1], "has no key -1")):
        with pytest.raises(InvalidArgumentError, match=why):
            registry.spend(digest, numbers)
    assert registry.key_counts()[0].left == 8


def test_no_key_and_no_response_is_stored(registry: Registry, fingerprints: FingerprintSet) -> None:
    attempt = registry.attempt(fingerprints, suspect="them")
    attempt.take(3)
    attempt.ended("match", {"keys": [{"number": f.number, "key": f.key} for f in fingerprints]})
    stored = ""
    with registry._reading() as connection:
        for table in ("licensees", "sets", "keys", "models", "attempts", "exposures"):
            stored += str(connection.execute(text(f"SELECT * FROM {table}")).all())  # noqa: S608
    for fingerprint in fingerprints:
        assert fingerprint.key not in stored
        assert all(text not in stored for text in fingerprint.askings["raw"].window.texts)
