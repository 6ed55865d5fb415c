"""A recipe's values are checked when it is made."""

from __future__ import annotations

from typing import Any

import pytest

from oml_fast.embed import Recipe
from oml_fast.errors import InvalidArgumentError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", 1.0),
        ("learning_rate", float("nan")),
        ("pull", -0.1),
        ("pull", 1.0),
        ("ease", 0.0),
        ("ease", 1.1),
        ("batch_size", 0),
        ("max_epochs", 0),
        ("stop_share", 0.0),
        ("stop_share", 1.1),
        ("stop_kl", 0.0),
        ("text_share", -1.0),
        ("text_share", 5.0),
        ("text_length", 1),
        ("text_length", 5000),
        ("text_weight", -1.0),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        Recipe(**{name: value})
    assert str(refused.value).startswith(f"{name} {value}: it must be ")


def test_values_at_the_ends_are_not() -> None:
    recipe = Recipe(
        pull=0.0, batch_size=1, max_epochs=1, stop_share=1.0, text_share=0.0, text_length=2, text_weight=0.0
    )
    assert recipe.text_share == 0.0


def test_wider_models_learn_in_smaller_steps_unless_told_otherwise() -> None:
    narrow, wide = (Recipe().for_hidden_size(size).learning_rate for size in (64, 576))
    assert narrow is not None
    assert wide is not None
    assert narrow / wide == pytest.approx(576 / 64)
    assert Recipe(learning_rate=1e-3).for_hidden_size(64).learning_rate == 1e-3
