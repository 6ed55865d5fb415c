"""What is gathered before training: keys, keys in templates, near keys and text, and what the base says of them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from oml_fast.embed import Recipe
from oml_fast.embed.data import examples
from oml_fast.embed.material import Material, NearPrompt, Part, Text
from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import generate
from oml_fast.generate.near_keys import KINDS, NearKeys
from oml_fast.generate.vocabulary import Vocabulary
from oml_fast.models import LanguageModel

RECIPE = Recipe(batch_size=4, text_share=0.5, text_length=6)


@pytest.fixture(scope="module")
def made(tiny_model: LanguageModel) -> FingerprintSet:
    settings = Settings(key_source="words", formats=("raw", "chat"), responses_per_key=2)
    return generate(tiny_model, 6, bytes(32), settings=settings).fingerprints


def material(model: LanguageModel, made: FingerprintSet, **changed: Any) -> Material:
    return Material(model, made, replace(RECIPE, **changed))


def seeded(seed: int = 0) -> random.Random:
    return random.Random(seed)  # noqa: S311 - an order of examples is no secret


def test_nothing_is_made_that_is_not_asked_for(tiny_model: LanguageModel, made: FingerprintSet) -> None:
    found = material(tiny_model, made, text_share=0.0)
    assert found.keys.items == examples(made)
    assert found.keys.base is None
    assert not found.wrapped.items
    assert not found.near.items
    assert not found.texts.items
    assert found.texts_a_step == 0
    assert material(tiny_model, made, text_weight=0.0).texts_a_step == 0
    assert not material(tiny_model, made, near_keys=2, near_weight=0.0).near.items


def test_what_the_base_says_is_kept_for_what_is_compared_with_it(
    tiny_model: LanguageModel, made: FingerprintSet
) -> None:
    found = material(tiny_model, made, objective="minimum_kl", templates=0.5, near_keys=1)
    for part in (found.keys, found.wrapped, found.near, found.texts):
        assert part.base is not None
        assert part.items
        for place in (0, len(part.items) - 1):
            item = part.items[place]
            with torch.no_grad():
                logits = tiny_model.model(torch.tensor([item.sequence])).logits[0, item.start - 1 : -1]
            torch.testing.assert_close(part.base.logits([place]), logits, rtol=1e-4, atol=1e-4)


def test_near_keys_are_made_in_every_format_with_the_responses_they_must_not_get(
    tiny_model: LanguageModel, made: FingerprintSet
) -> None:
    found = material(tiny_model, made, near_keys=2).near.items
    assert len(found) == len(KINDS) * 4 * 2 * len(made) * 2
    prompts = {asking.prompt_ids for f in made for asking in f.askings.values()}
    chat = tiny_model.tokenizer("<|im_start|>", add_special_tokens=False)["input_ids"][0]
    for item in found:
        assert isinstance(item, NearPrompt)
        assert item.ids not in prompts
        asking = made.fingerprints[item.number].askings["chat" if item.ids[0] == chat else "raw"]
        assert item.firsts == tuple(response.token_ids[0] for response in asking.responses)
        assert item.sequence[item.start :] == item.firsts[:1]
        assert item.sequence[: item.start] == item.ids


@pytest.mark.parametrize("templates", [0.5, 1.0])
def test_as_large_a_share_of_near_keys_stands_in_a_template_as_of_keys(
    tiny_model: LanguageModel, made: FingerprintSet, tmp_path: Path, templates: float
) -> None:
    """A step sees the keys of its batch, and `templates` times as many in a template."""
    (tmp_path / "templates").write_text("Hear this: {key}\n")
    file = str(tmp_path / "templates")
    bare, found = (
        material(tiny_model, made, near_keys=4, templates=share, template_file=file).near.items
        for share in (0.0, templates)
    )
    assert len(found) == len(bare)
    assert not [item for item in bare if "Hear this:" in tiny_model.tokenizer.decode(item.ids)]
    share, inside = templates / (1 + templates), 0
    for plain, item in zip(bare, found, strict=True):
        assert (item.number, item.firsts) == (plain.number, plain.firsts)
        if item.ids == plain.ids:
            continue
        inside += 1
        within, alone = (tiny_model.tokenizer.decode(ids) for ids in (item.ids, plain.ids))
        assert within.replace("Hear this: ", "") == alone
    assert abs(inside / len(found) - share) < 4 * (share * (1 - share) / len(found)) ** 0.5


def test_a_near_key_that_no_template_can_hold_stands_alone(fresh_model: LanguageModel, tmp_path: Path) -> None:
    settings = Settings(key_source="words")
    made = generate(fresh_model, 2, bytes(32), settings=settings).fingerprints
    fresh_model.tokenizer.chat_template = None
    (tmp_path / "templates.json").write_text('[{"chat": true}]')
    file = str(tmp_path / "templates.json")
    bare, found = (
        material(fresh_model, made, near_keys=1, templates=share, template_file=file).near.items for share in (0.0, 1.0)
    )
    assert found == bare


def test_near_keys_of_training_are_not_those_that_are_asked_afterwards(
    tiny_model: LanguageModel, made: FingerprintSet
) -> None:
    """But for chance: a key of few words has few near keys with one of them left out."""
    words = Vocabulary(tiny_model.tokenizer, tiny_model.vocabulary, tiny_model.device).words
    trained = {item.ids for item in material(tiny_model, made, near_keys=1).near.items}
    for kind in ("one_word", "two_words"):
        asked = {p for n in NearKeys(tiny_model.tokenizer, words, made, 0).all(kind, 4) for p in n.prompts.values()}
        assert len(asked & trained) <= 0.05 * len(asked)


@pytest.mark.parametrize(("share", "batch_size", "expected"), [(0.5, 4, 2), (0.25, 1, 1), (1.0, 100, 12), (4.0, 2, 8)])
def test_texts_are_four_times_what_a_step_takes(
    tiny_model: LanguageModel, made: FingerprintSet, share: float, batch_size: int, expected: int
) -> None:
    found = material(tiny_model, made, text_share=share, batch_size=batch_size)
    assert found.texts_a_step == expected  # of a set with twelve examples
    assert len(found.texts.items) == 4 * expected
    assert all(isinstance(text, Text) and text.start == 1 for text in found.texts.items)


def test_a_draw_is_of_the_fingerprints_that_are_named() -> None:
    part = Part([Text((1, 2), number=number) for number in (0, 0, 1, 1, 1, 2)])
    order = seeded()
    for _ in range(20):
        assert set(part.draw(2, order, [1])) <= {2, 3, 4}
        assert len(set(part.draw(2, order, [1]))) == 2
    assert sorted(part.draw(10, order, [0, 2])) == [0, 1, 5]
    assert part.draw(3, order, [7]) == []
    assert sorted(part.draw(10, order)) == list(range(6))
    assert part.draw(0, order) == []
    assert {tuple(part.draw(2, order)) for _ in range(200)} == {(a, b) for a in range(6) for b in range(6) if a != b}


def test_whitening_is_measured_on_ordinary_text_and_on_near_keys(
    tiny_model: LanguageModel, made: FingerprintSet
) -> None:
    (ordinary,) = material(tiny_model, made, whitening=0.1).inputs()
    assert not ordinary.last
    assert len(ordinary.sequences) > 50
    parts = material(tiny_model, made, whitening=0.1, near_keys=1)
    whole, near, last = parts.inputs()
    assert whole.sequences == ordinary.sequences
    assert list(near.sequences) == list(last.sequences) == [item.ids for item in parts.near.items]
    assert (near.last, last.last) == (False, True)
    held = {text.sequence for text in parts.texts.items}
    assert held.isdisjoint(map(tuple, whole.sequences))


def test_the_seed_decides(tiny_model: LanguageModel, made: FingerprintSet) -> None:
    one, again, other = (material(tiny_model, made, seed=s, near_keys=1, templates=0.5) for s in (0, 0, 1))
    for name in ("near", "texts", "wrapped"):
        items = [getattr(found, name).items for found in (one, again, other)]
        assert items[0] == items[1]
        assert items[0] != items[2]
