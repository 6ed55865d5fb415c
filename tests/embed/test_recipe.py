"""A recipe's values are checked when it is made."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from oml_fast.embed import PRESETS, Recipe
from oml_fast.errors import InvalidArgumentError

OUTSIDE: dict[str, list[Any]] = {
    "objective": ["", "minimum-kl"],
    "margin": [0.0, -1.0, 21.0, float("nan")],
    "margin_step": [-0.1, 21.0],
    "cap": [0.5, 1.1],
    "near_keys": [-1, 17],
    "near_weight": [-0.1, float("nan")],
    "text_share": [-1.0, 5.0],
    "text_length": [1, 5000],
    "text_weight": [-1.0],
    "chat_share": [-0.1, 4.1],
    "templates": [-0.1, 1.1],
    "template_texts": [-0.1, 1.1],
    "scaled": [-0.1, 1.1],
    "scaled_from": [0.0, 1.1],
    "rounded": [-0.1, 1.1],
    "tuned": [-0.1, 1.1],
    "tuned_by": [0.0, 1.0],
    "write_to": ["", "everything", "last", "last:", "last:0", "last:-1", "last:x", "lora", "lora:0", "lora:10000"],
    "whitening": [-0.1, 101.0],
    "states": ["", "float16"],
    "learning_rate": [0.0, 1.0, float("nan")],
    "width_rate": [0.0, float("nan")],
    "anneal": [-0.1, 1.1],
    "pull": [-0.1, 1.0],
    "ease": [0.0, 1.1],
    "final_scale": [0.0, 1.1],
    "batch_size": [0],
    "max_epochs": [0],
    "stop_share": [0.0, 1.1],
    "stop_kl": [0.0],
    "stop_near": [-0.1, 1.1],
    "stop_loss": [-0.1],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in OUTSIDE.items() for value in values])
def test_values_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        Recipe(**{name: value})
    assert str(refused.value).startswith(f"{name} {value}: it must be ")
    assert "\n" not in str(refused.value)


def test_every_value_is_checked_but_those_that_are_checked_where_they_are_used() -> None:
    assert {field.name for field in fields(Recipe)} - set(OUTSIDE) <= {"seed", "template_file", "max_drift"}


@pytest.mark.parametrize(
    "values",
    [
        {"pull": 0.0, "batch_size": 1, "max_epochs": 1, "stop_share": 1.0, "text_share": 0.0, "text_length": 2},
        {"text_weight": 0.0, "near_weight": 0.0, "near_keys": 16, "templates": 1.0, "stop_near": 0.0, "cap": 1.0},
        {"scaled": 1.0, "scaled_from": 1.0, "final_scale": 1.0, "ease": 1.0, "anneal": 1.0, "margin_step": 0.0},
        {"write_to": "last:9999"},
        {"write_to": "lora:1"},
        {"scaled": 0.4, "rounded": 0.3, "tuned": 0.3},
    ],
)
def test_values_at_the_ends_are_not(values: dict[str, Any]) -> None:
    assert all(getattr(Recipe(**values), name) == value for name, value in values.items())


def test_views_are_shares_of_the_same_steps() -> None:
    with pytest.raises(InvalidArgumentError, match="scaled, rounded and tuned are shares of the steps: together at"):
        Recipe(scaled=0.5, rounded=0.3, tuned=0.3)


@pytest.mark.parametrize("without", [{"text_share": 0.0}, {"text_weight": 0.0}])
def test_there_is_no_tuning_without_text(without: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"tuned: it tunes on text .*set text_share above 0"):
        Recipe(tuned=0.1, **without)


def test_a_low_rank_is_not_whitened() -> None:
    with pytest.raises(InvalidArgumentError, match="set it to 0 with write_to lora:R"):
        Recipe(whitening=0.1, write_to="lora:4")


def test_wider_models_learn_in_smaller_steps_unless_told_otherwise() -> None:
    narrow, wide = (Recipe().for_hidden_size(size).learning_rate for size in (64, 576))
    assert narrow is not None
    assert wide is not None
    assert narrow / wide == pytest.approx(576 / 64)
    assert Recipe(learning_rate=1e-3).for_hidden_size(64).learning_rate == 1e-3


def test_the_presets_are_distinct_recipes() -> None:
    assert {"harmless", "robust", "paper"} <= set(PRESETS)
    assert len(set(PRESETS.values())) == len(PRESETS)
