"""The presets of a set: what they change, and that they have the names of the embedding's."""

from __future__ import annotations

from dataclasses import asdict, replace

from oml_fast.cli import generate as command
from oml_fast.embed import PRESETS as RECIPES
from oml_fast.fingerprint import Settings
from oml_fast.generate import PRESETS


def test_presets_differ_from_the_settings_of_old_as_told() -> None:
    plain = asdict(Settings())
    changes = {name: {k: v for k, v in asdict(s).items() if v != plain[k]} for name, s in PRESETS.items()}
    assert changes == {
        "harmless": {},
        "robust": {"responses_per_key": 4},
        "quick": {},
        "paper": {"width": 3, "key_temperature": 0.5},
    }
    assert replace(PRESETS["paper"], width=16).key_temperature == 0.5


def test_a_set_and_its_embedding_have_presets_of_the_same_names() -> None:
    assert tuple(PRESETS) == tuple(RECIPES) == command.PRESETS


def test_a_recipe_for_several_responses_comes_with_several() -> None:
    several = {name for name, recipe in RECIPES.items() if recipe.objective == "minimum_kl"}
    assert {name for name, settings in PRESETS.items() if settings.responses_per_key > 1} == several
