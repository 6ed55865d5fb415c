"""What training is said to take, against what is gathered for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import pytest

from oml_fast.embed import PRESETS, Recipe
from oml_fast.embed.material import Item, Material
from oml_fast.embed.workload import Keys, Workload, workload
from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import generate
from oml_fast.models import LanguageModel

RECIPE = Recipe(batch_size=4, text_share=0.5, text_length=40)
# Lengths around a key are means over the templates of real tokenizers: a tiny one splits words into more ids.
APART = 0.2


@pytest.fixture(scope="module")
def made(tiny_model: LanguageModel) -> FingerprintSet:
    settings = Settings(key_source="words", formats=("raw", "chat"), responses_per_key=2)
    return generate(tiny_model, 6, bytes(32), settings=settings).fingerprints


def kept_states(material: Material) -> int:
    parts: Sequence[Sequence[Item]] = (material.keys.items, material.wrapped.items)
    compared = [items for items, part in zip(parts, (material.keys, material.wrapped), strict=True) if part.base]
    every: Sequence[Sequence[Item]] = [*compared, material.near.items, material.texts.items, material.chats.items]
    return sum(len(item.sequence) - item.start for items in every for item in items)


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        replace(RECIPE, near_keys=2),
        replace(RECIPE, text_weight=0.0),
        replace(RECIPE, near_keys=1, near_weight=0.0, chat_share=0.5),
        replace(PRESETS["robust"], batch_size=4),
        replace(PRESETS["harmless"], batch_size=100),
    ],
    ids=["keys and text", "near keys", "no text", "chats", "robust", "harmless in one batch"],
)
def test_what_is_gathered_is_what_is_said(tiny_model: LanguageModel, made: FingerprintSet, recipe: Recipe) -> None:
    found, said = Material(tiny_model, made, recipe), workload(recipe, Keys.of_set(made))
    passes = {one.name: one for one in said.passes}
    assert passes["keys"].count * said.steps_an_epoch >= len(found.keys.items) == said.keys.examples
    assert passes["keys"].count == min(recipe.batch_size, len(found.keys.items))
    assert counted(said, "text") == found.texts_a_step
    assert counted(said, "chats") == found.chats_a_step
    for name, part in {
        "keys": found.keys,
        "keys in templates": found.wrapped,
        "near keys": found.near,
        "text": found.texts,
    }.items():
        assert bool(part.items) == (name in passes)
        if part.items:
            length = fmean(len(item.sequence) - 1 for item in part.items)
            assert passes[name].length == pytest.approx(length, rel=0.05 if name == "keys" else APART), name
            rows = fmean(len(item.sequence) - item.start for item in part.items)
            assert passes[name].rows == pytest.approx(rows, rel=APART), name
    assert said.states == pytest.approx(kept_states(found), rel=APART, abs=0)


def counted(said: Workload, name: str) -> int:
    return sum(one.count for one in said.passes if one.name == name)
