"""How many keys a verdict takes: the fixed numbers exactly, the sequential ones against the test itself."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from oml_fast.errors import InvalidArgumentError
from oml_fast.verify import keys_to_verdict, sequential_cost
from oml_fast.verify.sequential import SequentialTest
from oml_fast.verify.statistics import TESTS
from oml_fast.verify.trials import Ranks, Trial


@pytest.mark.parametrize("test", ["window", "count"])
@pytest.mark.parametrize("width", [3, 16])
@pytest.mark.parametrize("fsr", [0.5, 0.95, 1.0])
@pytest.mark.parametrize("power", [0.5, 0.99])
def test_keys_to_verdict_is_the_smallest(test: str, width: int, fsr: float, power: float) -> None:
    def attained(queried: int) -> float:
        m = np.arange(queried + 1)
        p = (1 / width) ** m if test == "window" else stats.binom.sf(m - 1, queried, 1 / width)
        return float(stats.binom.pmf(m, queried, fsr) @ (p <= 1e-4))

    needed = keys_to_verdict(fsr, width, 1e-4, test=test, power=power)
    assert needed is not None
    assert attained(needed) >= power - 1e-12
    assert all(attained(queried) < power for queried in range(1, needed))


def test_keys_to_verdict_known_costs() -> None:
    assert [keys_to_verdict(1.0, width) for width in (3, 10, 16)] == [13, 6, 5]
    assert keys_to_verdict(1.0, 16, formats=2) == 7  # (31/256)**7 = 4e-7
    assert keys_to_verdict(1.0, 16, responses=4) == 10  # (1/4)**10 = 9.5e-7
    assert keys_to_verdict(0.1, 16, test="count") > 10 * keys_to_verdict(0.1, 16)
    assert keys_to_verdict(0.0, 16) is None
    assert keys_to_verdict(0.05, 16, test="count") is None
    assert keys_to_verdict(1.0, 16, responses=16) is None
    assert keys_to_verdict(1.0, 16, 1e-300) == 250


def test_a_model_that_kept_everything_costs_just_the_straight_matches() -> None:
    """Without chance in the outcome the simulation must give what the test itself takes."""
    for width in (3, 16):
        test = SequentialTest("window", 1e-6, 0.5, 1e-2)
        keys = 0
        while test.verdict() == "inconclusive":
            test.add([Trial((1 / width, 1 - 1 / width), 0)], matched=True)
            keys += 1
        cost = sequential_cost(1.0, width)
        assert (cost.median, cost.in_99_of_100, cost.match, cost.no_match) == (keys, keys, 1.0, 0.0)


def test_the_costs_that_the_issue_promises() -> None:
    assert sequential_cost(0.98, 16).median <= 7
    assert sequential_cost(0.98, 3).median <= 16
    base = sequential_cost(0.0, 16)
    assert base.in_99_of_100 <= 10
    assert base.no_match == 1.0


@pytest.mark.parametrize("fsr", [0.3, 0.8])
def test_the_simulation_agrees_with_the_test_itself(fsr: float) -> None:
    """Medians of 150 verifications by SequentialTest, against the simulated median."""
    rng = np.random.default_rng(1)
    needed = []
    for _ in range(150):
        test, keys = SequentialTest("count", 1e-4, 0.5, 1e-2), 0
        while test.verdict() == "inconclusive" and keys < 300:
            said = bool(rng.random() < fsr)
            test.add([Trial((1 / 16, 15 / 16), 0 if said else 1)], said)
            keys += 1
        needed.append(keys)
    median = sequential_cost(fsr, 16, 1e-4, test="count", most_keys=300).median
    assert np.quantile(needed, 0.4) - 1 <= median <= np.quantile(needed, 0.6) + 1


@pytest.mark.parametrize("test", ["rank", "forced_choice", "window", "count"])
def test_an_innocent_model_is_seldom_convicted_in_the_simulation(test: str) -> None:
    cost = sequential_cost(0.0, 16, 1e-2, test=test, most_keys=60)
    assert cost.match <= 0.01 + 4 * (0.01 * 0.99 / 2000) ** 0.5


def test_the_costs_of_ranks_of_several_responses() -> None:
    assert [sequential_cost(1.0, 16, test="rank", responses=responses).median for responses in (1, 2, 4)] == [6, 4, 3]
    assert [sequential_cost(0.5, 16, test="rank", responses=r, smallest_fsr=0.01).median for r in (1, 2, 4)] == [
        11,
        8,
        5,
    ]


@pytest.mark.parametrize("responses", [2, 4])
def test_ranks_of_several_responses_cost_less_than_one(responses: int) -> None:
    whole = sequential_cost(1.0, 16, test="rank", responses=responses)
    test, keys = SequentialTest("rank", 1e-6, 0.5, 1e-2), 0
    while test.verdict() == "inconclusive":
        test.add([Ranks((1,) * 16, tuple(range(responses)), aloud=True)], matched=True)
        keys += 1
    assert (whole.median, whole.in_99_of_100) == (keys, keys)
    assert keys < sequential_cost(1.0, 16, test="rank").median
    assert sequential_cost(0.0, 16, 1e-2, test="rank", responses=responses, most_keys=60).match <= 0.019


def test_ranks_of_more_draws_than_are_counted_are_sampled() -> None:
    cost = sequential_cost(0.5, 64, test="rank", responses=4, smallest_fsr=0.1, most_keys=60)
    assert cost.match == 1.0
    assert cost.median <= sequential_cost(0.5, 64, test="rank", most_keys=60).median


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("width", [1, 4])
def test_responses_that_fill_the_window_never_convict(test: str, width: int) -> None:
    cost = sequential_cost(1.0, width, test=test, responses=width, most_keys=50)
    assert (cost.median, cost.in_99_of_100, cost.match, cost.no_match) == (None, None, 0.0, 0.0)
    if test != "forced_choice":  # where the choice is a response whatever the model
        assert sequential_cost(0.0, width, test=test, responses=width, most_keys=50).no_match == 1.0


def test_where_most_keys_are_not_enough_there_is_no_number() -> None:
    cost = sequential_cost(1.0, 16, most_keys=3)
    assert (cost.median, cost.in_99_of_100, cost.match) == (None, None, 0.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: keys_to_verdict(1.1, 16),
        lambda: keys_to_verdict(0.5, 16, 0.0),
        lambda: keys_to_verdict(0.5, 16, test="rank"),
        lambda: keys_to_verdict(0.5, 16, power=1.0),
        lambda: keys_to_verdict(0.5, 16, formats=0),
        lambda: sequential_cost(1.1, 16),
        lambda: sequential_cost(0.5, 16, 1.0),
        lambda: sequential_cost(0.5, 16, test="best"),
        lambda: sequential_cost(0.5, 16, smallest_fsr=0.0),
        lambda: sequential_cost(0.5, 16, miss_rate=1.0),
        lambda: sequential_cost(0.5, 16, most_keys=0),
        lambda: sequential_cost(0.5, 16, responses=17),
    ],
)
def test_refusals(call) -> None:
    with pytest.raises(InvalidArgumentError):
        call()
