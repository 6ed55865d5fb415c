"""Differences, standard errors, bounds and flips of paired scores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from oml_fast.errors import InvalidArgumentError
from oml_fast.evaluate.paired import compare, flips, means

Z = 1.6448536269514722


def test_flips_are_named_and_counted() -> None:
    found = flips([1, 1, 0, 1, 0], [1, 0, 1, 0, 0])
    assert (found.lost, found.won) == ((1, 3), (2,))
    assert found.difference == pytest.approx(-0.2)
    assert found.to_json(["a", "b", "c", "d", "e"])["lost"] == ["b", "d"]


def test_the_standard_error_of_flips_is_that_of_the_paired_differences() -> None:
    rng = np.random.default_rng(0)
    base, model = rng.integers(0, 2, 400), rng.integers(0, 2, 400)
    assert flips(base, model).standard_error == pytest.approx((model - base).std() / 20)


def test_the_same_scores_differ_by_exactly_nothing_and_the_bound_still_says_how_many_were_asked() -> None:
    found = flips([1, 0] * 165, [1, 0] * 165)
    assert (found.difference, found.standard_error, found.lost, found.won) == (0, 0, (), ())
    assert found.loss_bound == pytest.approx(Z**2 / (330 + Z**2))  # Tango's bound without a flip, in closed form


def test_the_bound_holds_in_95_of_100_cases() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        lost, won, _rest = rng.multinomial(200, [0.06, 0.03, 0.91])
        base = np.r_[np.ones(lost), np.zeros(won), np.ones(200 - lost - won)]
        model = np.r_[np.zeros(lost), np.ones(won), np.ones(200 - lost - won)]
        covered += flips(base, model).loss_bound >= 0.03
    assert 0.92 <= covered / 400 <= 0.98


def test_all_lost_is_bounded_by_all() -> None:
    assert flips([1] * 20, [0] * 20).loss_bound == pytest.approx(1.0)


def test_means_are_over_parts_and_errors_over_items() -> None:
    base, model, counts = np.array([3.0, 8.0, 2.0]), np.array([4.0, 8.0, 3.5]), np.array([10, 20, 5])
    found = means(base, model, counts, higher_is_better=False)
    difference = 2.5 / 35
    spread = np.sum((model - base - difference * counts) ** 2)
    assert found.difference == pytest.approx(difference)
    assert found.standard_error == pytest.approx(math.sqrt(1.5 * spread) / 35)
    assert found.loss_bound == pytest.approx(difference + 2.919986 * found.standard_error)  # Student, 2 degrees


def test_the_bound_is_on_the_loss_whichever_way_is_better() -> None:
    base, model = np.arange(10.0), np.arange(10.0) + np.linspace(0, 1, 10)
    assert means(base, model).loss_bound < 0 < means(base, model, higher_is_better=False).loss_bound


def test_one_item_bounds_nothing() -> None:
    found = means([1.0], [2.0])
    assert found.difference == 1
    assert math.isinf(found.loss_bound)
    assert found.to_json()["loss_bound"] is None
    assert found.to_json()["standard_error"] is None


def test_compare_sees_what_kind_of_scores_they_are() -> None:
    assert compare([1, 0], [0, 0]).lost == (0,)
    assert compare([1.5, 0], [0, 0]).lost == ()


@pytest.mark.parametrize(
    ("base", "model"), [([], []), ([1], [1, 0]), ([[1]], [[1]]), ([math.nan], [1]), ([1], [math.inf])]
)
def test_what_cannot_be_compared_is_refused(base: list[float], model: list[float]) -> None:
    with pytest.raises(InvalidArgumentError):
        means(base, model)


def test_flips_of_other_scores_and_counts_of_nothing_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="means"):
        flips([0.5], [1])
    with pytest.raises(InvalidArgumentError, match="positive"):
        means([1, 1], [1, 1], [1, 0])
