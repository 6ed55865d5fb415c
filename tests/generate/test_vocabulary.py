"""Which token ids may be responses, which may stand in keys, and which words a tokenizer brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_tokenizer

from oml_fast.generate.vocabulary import Vocabulary
from oml_fast.models import load_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def allowed(mask: torch.Tensor) -> set[int]:
    return set(mask.nonzero()[:, 0].tolist())


def test_admissible_tokens_are_two_or_more_letters_and_digits(tokenizer: Any) -> None:
    vocabulary = Vocabulary(tokenizer, 1500, CPU)
    texts = {i: tokenizer.decode([i]).strip() for i in range(1500)}
    wanted = {i for i, text in texts.items() if len(text) >= 2 and all(c.isalnum() for c in text)}
    assert allowed(vocabulary.admissible) == wanted - set(tokenizer.all_special_ids)
    assert len(wanted) > 1000


def test_plain_tokens_are_printable_whole_characters(tokenizer: Any) -> None:
    texts = {i: tokenizer.decode([i]) for i in allowed(Vocabulary(tokenizer, 1500, CPU).plain)}
    assert all(text and text.isprintable() and "\ufffd" not in text for text in texts.values())
    assert {" ", ".", "a"} <= set(texts.values())


def test_special_and_added_tokens_are_neither(tokenizer: Any) -> None:
    added = tiny_tokenizer()
    added.add_tokens(["ordinaryword"])
    vocabulary = Vocabulary(added, len(added), CPU)
    for token_id in (*added.all_special_ids, added.convert_tokens_to_ids("ordinaryword")):
        assert not vocabulary.admissible[token_id]
        assert not vocabulary.plain[token_id]


@pytest.mark.parametrize("size", [1400, 1500, 1536])
def test_masks_are_as_wide_as_the_logits(tokenizer: Any, size: int) -> None:
    """Models pad their vocabularies; ids that no tokenizer gives are never responses."""
    vocabulary, whole = Vocabulary(tokenizer, size, CPU), Vocabulary(tokenizer, 1500, CPU)
    assert vocabulary.admissible.shape == vocabulary.plain.shape == (size,)
    assert allowed(vocabulary.admissible) == {i for i in allowed(whole.admissible) if i < size}


def test_words_are_lower_case_letters_sorted_and_distinct(tokenizer: Any) -> None:
    words = Vocabulary(tokenizer, 1500, CPU).words
    assert words == sorted(set(words))
    assert all(word.isascii() and word.isalpha() and word == word.lower() and len(word) >= 3 for word in words)
    assert {"license", "work", "contributor"} <= set(words)


@pytest.mark.real_model
def test_the_bundled_models_vocabulary(bundled_folder: Path) -> None:
    vocabulary = Vocabulary(load_tokenizer(bundled_folder), 49152, CPU)
    assert len(vocabulary.words) > 20_000
    assert 35_000 < len(allowed(vocabulary.admissible)) < len(allowed(vocabulary.plain)) < 49_152
