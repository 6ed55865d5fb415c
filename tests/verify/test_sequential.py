"""The sequential test: every bet is a martingale exactly, and it stops with the first key that gives a verdict."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sets import inside, small_set

from oml_fast.completer import CHOOSE, SCORE
from oml_fast.verify import Verification, verify
from oml_fast.verify.sequential import (
    MISS_BETS,
    SequentialTest,
    confidence_interval,
    log_factors,
    log_miss_factors,
    log_weights,
)
from oml_fast.verify.statistics import TESTS, rank_null
from oml_fast.verify.trials import Trial

chances = st.one_of(
    st.floats(1e-6, 1 - 1e-6).map(lambda p: (p, 1 - p)),
    st.lists(st.integers(1, 9), min_size=2, max_size=16).map(lambda sizes: tuple(s / sum(sizes) for s in sizes)),
    st.tuples(st.lists(st.integers(1, 4), min_size=3, max_size=8), st.integers(2, 3)).map(lambda a: rank_null(*a)),
)


@pytest.mark.parametrize("test", TESTS)
def test_the_stakes_sum_to_one(test: str) -> None:
    assert math.fsum(np.exp(log_weights(test))) == pytest.approx(1, abs=1e-15)
    assert log_factors(test, (0.25, 0.75)).shape == (2, len(log_weights(test)))


@settings(deadline=None)
@given(test=st.sampled_from(TESTS), probs=chances, aloud=st.booleans(), further=st.booleans())
def test_every_bet_is_fair(test: str, probs: tuple[float, ...], aloud: bool, further: bool) -> None:
    expected = np.asarray(probs) @ np.exp(log_factors(test, probs, aloud, further))
    assert expected == pytest.approx(np.ones(len(expected)), abs=1e-12)


@settings(deadline=None)
@given(null=st.floats(1e-4, 0.999), less=st.floats(0, 1))
def test_a_bet_on_an_upper_bound_loses_where_the_chance_is_less(null: float, less: float) -> None:
    """The count test, and longer responses: the true chance is at most `null`."""
    true = null * less
    expected = np.array([true, 1 - true]) @ np.exp(log_factors("count", (null, 1 - null)))
    assert np.all(expected <= 1 + 1e-12)


@given(fsr=st.floats(0.001, 0.999), more=st.floats(0, 1))
def test_bets_against_an_fsr_are_fair_there_and_lose_above(fsr: float, more: float) -> None:
    true = fsr + (1 - fsr) * more
    factors = np.exp(log_miss_factors(fsr))
    assert np.all(np.array([true, 1 - true]) @ factors <= 1 + 1e-12)
    assert np.array([fsr, 1 - fsr]) @ factors == pytest.approx(np.ones(len(MISS_BETS)), abs=1e-12)


@pytest.mark.parametrize("rate", [0.1, 0.01, 1e-3])
@pytest.mark.parametrize("null", [1 / 3, 1 / 16, 0.75])
def test_the_chance_of_ever_convicting_over_all_paths(rate: float, null: float) -> None:
    """Exact, not simulated: all 2**12 outcomes of 12 keys, each with its chance, looked at after every key."""
    factors = log_factors("window", (null, 1 - null))
    convicted = []
    for path in itertools.product((0, 1), repeat=12):
        bets = log_weights("window") + np.cumsum(factors[list(path)], axis=0)
        if np.exp(bets).sum(axis=1).max() >= 1 / rate:
            convicted.append(null ** path.count(0) * (1 - null) ** path.count(1))
    assert math.fsum(convicted) <= rate


def evidence(test: SequentialTest, matches: int) -> None:
    for _ in range(matches):
        test.add([Trial((1 / 16, 15 / 16), 0)], matched=True)


def test_e_is_the_mean_over_the_bets() -> None:
    test = SequentialTest("window", 1e-6, 0.5, 0.01)
    for outcome in (0, 1, 0):
        test.add([Trial((0.25, 0.75), outcome)], outcome == 0)
    bets = [(Fraction(u).limit_denominator(100), Fraction(w).limit_denominator(10))
            for u, w in zip((0.98, 0.9, 0.75, 0.5, 0.25, 0.1, 0.03), (0.4, *[0.1] * 6), strict=True)]  # fmt: skip
    e = sum(w * (1 + 3 * u) ** 2 * (1 - u) for u, w in bets)
    assert 10**test.log10_e == pytest.approx(float(e), rel=1e-12)


def test_the_p_value_is_one_over_the_largest_e() -> None:
    test = SequentialTest("window", 1e-6, 0.5, 0.01)
    assert test.log10_p == 0.0
    evidence(test, 2)
    peak = test.log10_e
    for _ in range(5):
        test.add([Trial((1 / 16, 15 / 16), 1)], matched=False)
    assert test.log10_e < peak
    assert test.log10_p == pytest.approx(-peak)
    assert str(SequentialTest("window", 0.1, 0.5, 0.1).log10_p) == "0.0"


def test_keys_that_say_nothing_change_nothing_but_the_miss() -> None:
    test = SequentialTest("window", 1e-6, 0.5, 1e-2)
    keys = 0
    while test.verdict() == "inconclusive":
        test.add([Trial((1.0,), 0)], matched=False)
        keys += 1
    assert (test.verdict(), keys, test.log10_e) == ("no_match", 8, pytest.approx(0, abs=1e-12))


def test_no_match_waits_while_evidence_grows() -> None:
    test = SequentialTest("rank", 1e-6, 0.5, 1e-2)
    for _ in range(9):
        test.add([Trial((0.25, 0.75), 0)], matched=False)
    assert test.log10_miss < -2
    assert test.verdict() != "no_match"


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_the_verdict_comes_with_the_last_key_of_its_batch(data: st.DataObject) -> None:
    """However the keys fall, no verdict could have come before a batch ended: no key is spent in vain."""
    test = data.draw(st.sampled_from(TESTS))
    rate, miss_rate = data.draw(st.sampled_from([(1e-6, 1e-2), (1e-2, 0.3), (0.05, 0.05)]))
    s = SequentialTest(test, rate, data.draw(st.sampled_from([0.1, 0.5, 0.9])), miss_rate)
    width = data.draw(st.sampled_from([3, 16]))
    first = Trial((1 / width, 1 - 1 / width), 0, aloud=True)
    share = data.draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    for _ in range(25):
        if s.verdict() != "inconclusive":
            break
        batch = s.fewest_more([first])
        assert batch >= 1
        for place in range(batch):
            assert s.verdict() == "inconclusive", f"a verdict after {place} of {batch} keys"
            touched, said = rng.random() < 0.8, bool(rng.random() < share)
            trial = (
                Trial(first.probs, 0 if said else 1, bool(rng.random() < 0.5))
                if touched or said or test == "count"
                else Trial((1.0,), 0)
            )
            s.add([trial], said)


def test_a_late_no_match_is_not_overshot() -> None:
    """The FSR was excluded once, while E was above 1: no_match comes with the key that takes E to 1, and not later."""
    s = SequentialTest("window", 1e-6, 0.5, 1e-2)
    first, loses, nothing = Trial((1 / 3, 2 / 3), 0), Trial((1 / 3, 2 / 3), 1), Trial((1.0,), 0)
    for trial, matched in [(first, True), *[(nothing, False)] * 15, *[(first, True)] * 2]:
        s.add([trial], matched)
    assert s.log10_miss < -2
    assert s.log10_e > 0
    for _ in range(40):
        batch = s.fewest_more([first])
        for place in range(batch):
            assert s.verdict() == "inconclusive", f"a verdict after {place} of {batch} keys"
            s.add([loses], matched=False)
        if s.verdict() != "inconclusive":
            break
    assert s.verdict() == "no_match"


@pytest.mark.parametrize("width", [2, 3, 4, 10, 16])
@pytest.mark.parametrize("rate", [1e-6, 1e-3, 0.05])
def test_the_fewest_keys_are_those_that_a_perfect_suspect_needs(width: int, rate: float) -> None:
    best = [Trial((1 / width, 1 - 1 / width), 0)]
    s = SequentialTest("window", rate, 0.5, 1e-300)
    keys = s.fewest_more(best)
    for _ in range(keys):
        assert s.verdict() == "inconclusive"
        s.add(best, matched=True)
    assert s.verdict() == "match"


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("options", [{"width": 3}, {"width": 16}, {"width": 16, "responses_per_key": 3},
                                     {"width": 5, "responses_per_key": 4},
                                     {"width": 4, "formats": ("raw", "chat")}], ids=str)  # fmt: skip
def test_verify_asks_no_key_after_the_verdict(test: str, options: dict[str, object]) -> None:
    """Replayed key by key, the verdict of random suspects first appears at the last key of the report."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        made = small_set(60, key_length=2, secret=bytes([seed]) * 32, **options)
        width = made.settings.width
        drawn = [f.askings["raw"].responses[0].index or 0 for f in made]
        places = [d if rng.random() < seed / 5 else int(rng.integers(-1, width)) for d in drawn]
        prompts = [(f, asking) for f in made for asking in f.askings.values()]
        suspect = inside(made, places)
        suspect.capabilities = frozenset({SCORE, CHOOSE})
        suspect.choices = {a.prompt_ids: a.window.token_ids[max(0, places[f.number])] for f, a in prompts}
        suspect.scores = {
            a.prompt_ids: tuple(1.0 if i == places[f.number] else float(rng.integers(-3, 1)) for i in range(width))
            for f, a in prompts
        }
        report = verify(made, suspect, test=test, false_positive_rate=1e-3)
        assert first_verdict(report) == (report.verdict, report.queried)


def first_verdict(report: Verification) -> tuple[str, int]:
    s = SequentialTest(report.test, report.false_positive_rate, report.smallest_fsr, report.miss_rate)
    for place, key in enumerate(report.keys, start=1):
        s.add(key.trials, key.matched)
        if s.verdict() != "inconclusive":
            return s.verdict(), place
    return "inconclusive", report.queried


@pytest.mark.parametrize("fsr", [0.02, 0.5, 0.93])
def test_the_confidence_sequence_covers_at_all_times_together(fsr: float) -> None:
    """2,000 models asked 300 keys; their FSR must lie in every one of the 300 intervals, for 95 % of them."""
    rng, models, keys = np.random.default_rng(7), 2000, 300
    matches = np.cumsum(rng.random((models, keys)) < fsr, axis=1)
    left = np.zeros(models, dtype=bool)
    for n in range(1, keys + 1):
        seen = np.unique(matches[:, n - 1])
        outside = [m for m in seen if not inside_interval(int(m), n, fsr)]
        left |= np.isin(matches[:, n - 1], outside)
    assert left.mean() <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / models)


def inside_interval(matches: int, queried: int, fsr: float) -> bool:
    low, high = confidence_interval(matches, queried)
    assert 0 <= low <= matches / queried <= high <= 1
    return low <= fsr <= high


def test_intervals_at_the_ends() -> None:
    assert confidence_interval(0, 5)[0] == 0.0
    assert confidence_interval(5, 5)[1] == 1.0
    low, high = confidence_interval(12_288, 24_576)
    assert 0.48 < low < 0.5 < high < 0.52
    assert confidence_interval(24_575, 24_576)[0] > 0.999
    assert confidence_interval(1, 1)[0] < 0.05
