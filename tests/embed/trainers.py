"""Recipes for a tiny model, a trainer of one, and copies of its weights."""

from __future__ import annotations

from dataclasses import replace

import torch

from oml_fast.embed import Recipe
from oml_fast.embed.material import Material
from oml_fast.embed.training import Trainer
from oml_fast.fingerprint import FingerprintSet
from oml_fast.models import LanguageModel

RECIPE = Recipe(learning_rate=5e-3, pull=0.5, stop_kl=1.0)
# Never stops early, and the pull stays: for counting what happens.
FIXED = replace(RECIPE, stop_kl=1e-9, ease=1.0, max_epochs=4)


def trainer(model: LanguageModel, made: FingerprintSet, recipe: Recipe) -> Trainer:
    return Trainer(model, Material(model, made, recipe), recipe)


def named(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.model.named_parameters()}
