"""Every tail of match counts against exact rational arithmetic; nothing here is simulated (test_null.py is)."""

from __future__ import annotations

import itertools
import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from oml_fast.errors import InvalidArgumentError
from oml_fast.verify.statistics import (
    bits_per_key,
    clopper_pearson,
    convicts,
    count_test,
    null_of_asking,
    null_of_key,
    p_value,
    window_test,
)


def exact_tail(nulls: list[Fraction], matches: int) -> Fraction:
    """P(sum of Bernoulli(nulls) >= matches), by dynamic programming in rationals."""
    masses = [Fraction(1)]
    for null in nulls:
        longer = [*masses, Fraction(0)]
        masses = [longer[m] * (1 - null) + (masses[m - 1] * null if m else 0) for m in range(len(longer))]
    return sum(masses[matches:], Fraction(0))


def log10(value: Fraction) -> float:
    return math.log10(value.numerator) - math.log10(value.denominator)


def exact_binomial_tail(matches: int, queried: int, null: Fraction) -> Fraction:
    hit, miss, whole = null.numerator, null.denominator - null.numerator, null.denominator
    ways = sum(math.comb(queried, m) * hit**m * miss ** (queried - m) for m in range(matches, queried + 1))
    return Fraction(ways, whole**queried)


@pytest.mark.parametrize("width", [2, 3, 5, 6])
def test_null_of_asking_is_the_share_of_draws_that_match(width: int) -> None:
    for responses in range(1, width + 1):
        draws = list(itertools.permutations(range(width), responses))
        for satisfied in range(width + 1):
            share = Fraction(sum(min(draw) < satisfied for draw in draws), len(draws))
            assert null_of_asking(satisfied, width, responses) == pytest.approx(float(share), abs=1e-15)


def test_null_of_key_is_the_share_of_pairs_of_draws_that_match() -> None:
    for a, b in itertools.product(range(5), repeat=2):
        pairs = list(itertools.product(range(4), repeat=2))
        share = sum(x < a or y < b for x, y in pairs) / len(pairs)
        assert null_of_key([a / 4, b / 4]) == pytest.approx(share, abs=1e-15)


def test_null_of_key_with_one_informative_format_is_that_format() -> None:
    assert null_of_key([1 / 3]) == 1 / 3
    assert null_of_key([0.0, 1 / 3, 0.0]) == 1 / 3
    assert null_of_key([]) == 0.0
    assert null_of_key([0.5, 1.0]) == 1.0


@pytest.mark.parametrize(
    ("matches", "queried", "width"),
    [(0, 5, 3), (1, 1, 16), (5, 5, 3), (4, 9, 16), (680, 680, 16), (400, 680, 16), (43, 680, 16), (30, 680, 16),
     (1, 680, 3), (679, 680, 3), (1000, 4096, 3), (300, 4096, 16)],
)  # fmt: skip
def test_count_test_is_the_exact_tail(matches: int, queried: int, width: int) -> None:
    exact = log10(exact_binomial_tail(matches, queried, Fraction(1, width)))
    assert count_test(matches, queried, 1 / width) == pytest.approx(exact, rel=1e-12, abs=1e-11)


def test_count_test_is_scipys_where_scipy_does_not_underflow() -> None:
    for queried, null in [(7, 0.5), (64, 1 / 16), (256, 1 / 3), (1024, 0.12)]:
        for matches in range(0, queried + 1, 3):
            tail = stats.binom.sf(matches - 1, queried, null)
            if tail > 1e-290:
                assert count_test(matches, queried, null) == pytest.approx(math.log10(tail), rel=1e-10, abs=1e-11)


def test_the_log_survives_where_the_float_does_not() -> None:
    log10_p = count_test(680, 680, 1 / 16)
    assert log10_p == pytest.approx(-680 * math.log10(16), rel=1e-14)
    assert p_value(log10_p) == 0.0
    assert bits_per_key(log10_p, 680) == pytest.approx(4.0, rel=1e-14)
    assert convicts(log10_p, 1e-300)


nulls_of_keys = st.lists(
    st.sampled_from([Fraction(0), Fraction(1, 16), Fraction(1, 3), Fraction(3, 16), Fraction(31, 256), Fraction(1)]),
    max_size=14,
)


@settings(deadline=None)
@given(nulls=nulls_of_keys, data=st.data())
def test_window_test_is_the_exact_tail(nulls: list[Fraction], data: st.DataObject) -> None:
    matches = data.draw(st.integers(0, sum(null > 0 for null in nulls)))
    exact = exact_tail(nulls, matches)
    assert window_test([float(null) for null in nulls], matches) == pytest.approx(log10(exact), rel=1e-12, abs=1e-12)


@settings(deadline=None)
@given(nulls=st.lists(st.floats(0.001, 0.999), min_size=1, max_size=12), data=st.data())
def test_window_test_with_arbitrary_nulls(nulls: list[float], data: st.DataObject) -> None:
    matches = data.draw(st.integers(0, len(nulls)))
    exact = exact_tail([Fraction(null) for null in nulls], matches)
    assert window_test(nulls, matches) == pytest.approx(log10(exact), rel=1e-11, abs=1e-12)
    assert window_test(sorted(nulls), matches) == pytest.approx(window_test(nulls, matches), rel=1e-12, abs=1e-12)


def test_every_p_value_is_its_own_probability() -> None:
    """P(p <= p(m)) = p(m) under H0: the test is exact at every level it can attain, by enumerating all draws."""
    width, satisfied = 3, (1, 1, 2, 0, 1)
    counts = [0] * (len(satisfied) + 1)
    for draw in itertools.product(range(width), repeat=len(satisfied)):
        counts[sum(index < c for index, c in zip(draw, satisfied, strict=True))] += 1
    nulls = [null_of_asking(c, width) for c in satisfied]
    for matches in range(5):
        share = sum(counts[matches:]) / width ** len(satisfied)
        assert 10 ** window_test(nulls, matches) == pytest.approx(share, rel=1e-12)


def test_answers_outside_every_window_cost_nothing() -> None:
    touched = [1 / 3] * 100
    assert window_test(touched + [0.0] * 900, 100) == window_test(touched, 100)
    assert window_test(touched + [0.0] * 900, 100) == pytest.approx(-100 * math.log10(3))
    assert count_test(100, 1000, 1 / 3) > -0.01
    assert window_test([0.0] * 9, 0) == window_test([], 0) == 0.0


def test_a_certain_match_says_nothing() -> None:
    assert window_test([1.0, 0.25], 2) == pytest.approx(math.log10(0.25))
    assert window_test([1.0, 0.25], 1) == 0.0


def test_science_page_figures() -> None:
    assert 10 ** count_test(5, 5, 1 / 3) == pytest.approx(4.1e-3, rel=0.01)
    for width, needed in [(3, 13), (10, 6), (16, 5)]:
        assert convicts(window_test([1 / width] * needed, needed), 1e-6)
        assert not convicts(window_test([1 / width] * (needed - 1), needed - 1), 1e-6)


@pytest.mark.parametrize("distinct", [1, 3, 100])
def test_24576_keys_take_well_under_a_second(distinct: int) -> None:
    rng = np.random.default_rng(distinct)
    nulls = rng.choice(rng.uniform(0.05, 0.4, distinct), 24_576)
    best = math.inf
    for _ in range(3):
        start = time.process_time()
        log10_p = window_test(nulls, 20_000)
        best = min(best, time.process_time() - start)
    assert math.isfinite(log10_p)
    assert log10_p < -5000
    assert best < 1.0


def test_large_mixed_nulls_are_accurate() -> None:
    nulls = [Fraction(1, 16)] * 300 + [Fraction(31, 256)] * 300
    for matches in (10, 60, 200, 599):
        exact = log10(exact_tail_of_two_groups(300, Fraction(1, 16), 300, Fraction(31, 256), matches))
        assert window_test([float(null) for null in nulls], matches) == pytest.approx(exact, rel=1e-12, abs=1e-11)


def exact_tail_of_two_groups(n: int, a: Fraction, m: int, b: Fraction, matches: int) -> Fraction:
    def masses(count: int, null: Fraction) -> list[Fraction]:
        return [math.comb(count, j) * null**j * (1 - null) ** (count - j) for j in range(count + 1)]

    tails = [Fraction(0), *itertools.accumulate(reversed(masses(m, b)))][::-1]  # tails[j] = P(second group >= j)
    return sum((mass * tails[min(max(matches - j, 0), m + 1)] for j, mass in enumerate(masses(n, a))), Fraction(0))


def test_the_fourier_path_agrees_with_the_direct_one() -> None:
    """Two groups of 3,000, one null apart from the other by nothing that counts, against one group of 6,000."""
    for matches in (100, 375, 1000, 5000, 5999):
        apart = window_test([1 / 16] * 3000 + [math.nextafter(1 / 16, 1)] * 3000, matches)
        assert apart == pytest.approx(count_test(matches, 6000, 1 / 16), rel=1e-12, abs=1e-11)


@pytest.mark.parametrize(("matches", "queried"), [(0, 1), (0, 64), (63, 64), (64, 64), (5, 10), (8191, 8192)])
def test_clopper_pearson_is_scipys(matches: int, queried: int) -> None:
    interval = stats.binomtest(matches, queried).proportion_ci(0.95, method="exact")
    assert clopper_pearson(matches, queried) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_clopper_pearson_covers() -> None:
    for queried, fsr in itertools.product((1, 5, 20), (0.01, 0.3, 0.5, 0.95)):
        covered = 0.0
        for matches in range(queried + 1):
            low, high = clopper_pearson(matches, queried)
            covered += stats.binom.pmf(matches, queried, fsr) * (low <= fsr <= high)
        assert covered >= 0.95


def test_bits_per_key_of_one_match_is_the_width() -> None:
    assert bits_per_key(window_test([1 / 16], 1), 1) == pytest.approx(4.0)
    assert bits_per_key(window_test([1 / 16, 0.0], 1), 2) == pytest.approx(2.0)
    assert str(bits_per_key(0.0, 5)) == "0.0"


def test_an_extreme_tail_to_fifty_digits() -> None:
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(50):
        null = mpmath.mpf(1) / 16
        for matches in (1500, 5000, 20_000):
            terms = range(matches, min(matches + 600, 20_481))  # what follows is smaller than 1e-20 of them
            tail = mpmath.fsum(mpmath.binomial(20_480, m) * null**m * (1 - null) ** (20_480 - m) for m in terms)
            assert count_test(matches, 20_480, 1 / 16) == pytest.approx(float(mpmath.log10(tail)), rel=1e-11, abs=1e-10)


@pytest.mark.parametrize(
    "call",
    [
        lambda: count_test(6, 5, 0.1),
        lambda: count_test(-1, 5, 0.1),
        lambda: count_test(1, 5, 0.0),
        lambda: count_test(1, 5, 1.1),
        lambda: window_test([0.1, 0.0], 2),
        lambda: window_test([0.1, -0.1], 0),
        lambda: window_test([0.1, math.nan], 0),
        lambda: window_test([[0.1]], 0),
        lambda: null_of_asking(4, 3),
        lambda: null_of_asking(1, 3, 0),
        lambda: null_of_asking(1, 3, 4),
        lambda: clopper_pearson(0, 0),
        lambda: clopper_pearson(1, 2, 1.0),
    ],
)
def test_refusals(call) -> None:
    with pytest.raises(InvalidArgumentError):
        call()
