"""Near keys: a word or two of a key changed, or one left out, asked as the key is."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from oml_fast.errors import InvalidArgumentError
from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import generate
from oml_fast.generate.near_keys import KINDS, NearKeys, dropped, replaced
from oml_fast.generate.vocabulary import Vocabulary
from oml_fast.models import LanguageModel, load

COUNT = 6
WORDS = ["licence", "patent", "work", "terms"]


@pytest.fixture(scope="module")
def fingerprints(tiny_model: LanguageModel) -> FingerprintSet:
    settings = Settings(key_source="words", formats=("raw", "chat"))
    return generate(tiny_model, COUNT, bytes(32), settings=settings).fingerprints


def near_keys(model: LanguageModel, fingerprints: FingerprintSet, seed: int = 0) -> NearKeys:
    words = Vocabulary(model.tokenizer, model.vocabulary, model.device).words
    return NearKeys(model.tokenizer, words, fingerprints, seed)


def seeded(seed: int = 0) -> random.Random:
    return random.Random(seed)  # noqa: S311 - no secret


def with_keys(model: LanguageModel, fingerprints: FingerprintSet, *keys: str) -> FingerprintSet:
    """The set's first fingerprints, with other keys."""
    made = [
        replace(f, key=key, key_ids=tuple(model.tokenizer(key)["input_ids"]))
        for f, key in zip(fingerprints, keys, strict=False)
    ]
    return replace(fingerprints, fingerprints=tuple(made))


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(tiny_model: LanguageModel, fingerprints: FingerprintSet, kind: str) -> None:
    one, again, other = (near_keys(tiny_model, fingerprints, seed).all(kind, 3) for seed in (0, 0, 1))
    assert one == again
    assert [near.prompts for near in one] != [near.prompts for near in other]


def test_each_kind_has_its_own(tiny_model: LanguageModel, fingerprints: FingerprintSet) -> None:
    make = near_keys(tiny_model, fingerprints)
    found = [{near.prompts["raw"] for near in make.all(kind, 3)} for kind in KINDS]
    assert len(set.union(*found)) == 3 * 3 * COUNT


def test_more_of_a_key_begin_with_the_same(tiny_model: LanguageModel, fingerprints: FingerprintSet) -> None:
    make = near_keys(tiny_model, fingerprints)
    few, many = make.all("two_words", 2), make.all("two_words", 5)
    for number in range(COUNT):
        own = [[near for near in made if near.fingerprint.number == number] for made in (few, many)]
        assert own[0] == own[1][:2]


@pytest.mark.parametrize("kind", ["one_word", "two_words", "dropped_word"])
def test_near_keys_are_distinct_no_key_and_asked_in_every_format(
    tiny_model: LanguageModel, fingerprints: FingerprintSet, kind: str
) -> None:
    near = near_keys(tiny_model, fingerprints).all(kind, 4)
    assert len(near) == 4 * COUNT
    assert [one.fingerprint for one in near[::4]] == list(fingerprints)
    raw = [one.prompts["raw"] for one in near]
    assert len(set(raw)) == len(raw)
    assert not set(raw) & {asking.prompt_ids for f in fingerprints for asking in f.askings.values()}
    for fingerprint, text, prompts in near:
        assert set(prompts) == set(fingerprints.settings.formats)
        old, new = fingerprint.key.split(), tiny_model.tokenizer.decode(prompts["raw"]).split()
        changed = sum(a != b for a, b in zip(old, new, strict=False))
        if kind == "dropped_word":
            assert len(new) == len(old) - 1
        else:
            assert len(new) == len(old)
            assert changed == (1 if kind == "one_word" else 2)
        assert tiny_model.tokenizer.decode(prompts["raw"]) == text
        assert text in tiny_model.tokenizer.decode(prompts["chat"])


def test_they_begin_with_bos_where_keys_do(bos_folder: Path) -> None:
    model = load(bos_folder, device="cpu")
    made = generate(model, 3, bytes(32), settings=Settings(key_source="words")).fingerprints
    assert all(near.prompts["raw"][0] == 0 for near in near_keys(model, made).all("one_word", 2))


def test_another_key_of_the_set_is_not_one(tiny_model: LanguageModel, fingerprints: FingerprintSet) -> None:
    """Of three words one is left out: two of the three ways are keys themselves."""
    made = with_keys(tiny_model, fingerprints, "work under licence", "under licence", "work licence")
    found = near_keys(tiny_model, made).all("dropped_word", 4)
    assert [tiny_model.tokenizer.decode(near.prompts["raw"]) for near in found] == ["work under"]
    assert found[0].fingerprint.number == 0


def test_there_are_fewer_where_the_words_allow_no_more(tiny_model: LanguageModel, fingerprints: FingerprintSet) -> None:
    made = with_keys(tiny_model, fingerprints, "4711 0815", "work under the licence")
    make = near_keys(tiny_model, made)
    for kind, most in (("one_word", 4), ("two_words", 4), ("dropped_word", 4)):
        found = make.all(kind, 4)
        assert [near.fingerprint.number for near in found] == [1] * most
    few = NearKeys(tiny_model.tokenizer, ["work", "patent"], with_keys(tiny_model, made, "under 1 2"), 0)
    texts = {tiny_model.tokenizer.decode(near.prompts["raw"]) for near in few.all("one_word", 4)}
    assert texts == {"work 1 2", "patent 1 2"}


def test_a_longer_word_may_make_the_key_longer_than_the_set_allows(
    tiny_model: LanguageModel, fingerprints: FingerprintSet
) -> None:
    limited = replace(fingerprints, settings=replace(fingerprints.settings, key_length=2))
    assert len(near_keys(tiny_model, limited).all("one_word", 2)) == 2 * COUNT


@pytest.mark.parametrize("count", [1, 2])
def test_replacing_changes_words_and_nothing_else(count: int) -> None:
    text = "Work, under the licence's terms; don't (4) wait."
    seen = set()
    for seed in range(60):
        found = replaced(text, count, WORDS, seeded(seed))
        assert found is not None
        old, new = text.split(), found.split()
        changed = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
        assert len(changed) == count
        for a, b in changed:
            assert b.strip(",;.").lower() in WORDS
            assert a[0].isupper() == b[0].isupper()
            assert a[-1].isalnum() or a[-1] == b[-1]  # punctuation stays
        seen |= {a for a, _ in changed}
    assert seen == {"Work,", "under", "the", "licence's", "terms;", "don't", "wait."}


def test_a_word_is_not_replaced_by_itself() -> None:
    assert {replaced("Work 4711", 1, ["work", "patent"], seeded(seed)) for seed in range(40)} == {"Patent 4711"}


def test_a_text_of_too_few_words_has_no_near_key() -> None:
    assert replaced("one 2 3", 2, WORDS, seeded()) is None
    assert replaced("4711", 1, WORDS, seeded()) is None
    assert dropped("two words", seeded()) is None
    assert dropped("three short words", seeded()) in {"short words", "three words", "three short"}


def test_a_tokenizer_without_words_is_refused(tiny_model: LanguageModel, fingerprints: FingerprintSet) -> None:
    with pytest.raises(InvalidArgumentError, match="no words"):
        NearKeys(tiny_model.tokenizer, ["one"], fingerprints, 0)
