"""Ranks of several responses: chances and p-values against enumeration of all draws, and power that is never lost."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oml_fast.errors import InvalidArgumentError
from oml_fast.verify.ranks import (
    chance_of_ranks,
    group_scores,
    log_rank_test,
    rank_steps,
    ranks_test,
    score_chances,
)
from oml_fast.verify.replay import fixed_log10_p
from oml_fast.verify.sequential import SPIKES, SequentialTest, log_gains, log_weights, most_log_gains
from oml_fast.verify.statistics import convicts, rank_null, rank_test
from oml_fast.verify.trials import Ranks, Trial

RATES = (1e-1, 1e-2, 1e-3)
Key = tuple[tuple[int, ...], tuple[int, ...]]


def patterns(width: int) -> list[tuple[int, ...]]:
    """All ways in which `width` scores can be tied, the best group first."""
    return [
        tuple(int(n) for n in np.diff([0, *cuts, width]))
        for parts in range(width)
        for cuts in itertools.combinations(range(1, width), parts)
    ]


def all_places(sizes: Sequence[int], responses: int) -> list[tuple[int, ...]]:
    """The groups of the responses, for each draw; every draw is as likely as another."""
    group = [place for place, size in enumerate(sizes) for _ in range(size)]
    return [tuple(group[i] for i in draw) for draw in itertools.combinations(range(sum(sizes)), responses)]


CASES = [(sizes, r) for width in (2, 3, 4, 6) for sizes in patterns(width) for r in range(1, width + 1)]


def test_the_steps_are_the_shares_of_draws() -> None:
    for sizes, responses in CASES:
        draws = all_places(sizes, responses)
        for places in set(draws):
            told = rank_steps(sizes, places)
            assert len(told) == responses
            for step, (probs, outcome) in enumerate(told):
                alike = [draw for draw in draws if draw[:step] == places[:step]]
                found = Counter(draw[step] for draw in alike)
                assert probs == pytest.approx([found[g] / len(alike) for g in sorted(found)], abs=1e-15)
                assert sorted(found)[outcome] == places[step]
            whole = math.prod(probs[outcome] for probs, outcome in told)
            assert whole == pytest.approx(draws.count(places) / len(draws), rel=1e-12)


def test_the_first_step_is_the_best_response() -> None:
    for sizes, responses in CASES:
        for places in set(all_places(sizes, responses)):
            assert rank_steps(sizes, places)[0] == (rank_null(sizes, responses), places[0])


def test_chances_of_a_score_are_the_shares_of_draws() -> None:
    for sizes, responses in CASES:
        scores = group_scores(sizes)
        draws = all_places(sizes, responses)
        sums = [sum(scores[place] for place in draw) for draw in draws]
        share = Counter(sums)
        chances = score_chances(sizes, responses)
        assert chances == pytest.approx([share[n] / len(draws) for n in range(len(chances))], abs=1e-15)
        for draw, total in zip(draws, sums, strict=True):
            as_good = sum(each <= total for each in sums) / len(draws)
            assert chance_of_ranks(sizes, draw) == pytest.approx(as_good, rel=1e-12)


@st.composite
def keys_of_one_shape(draw: st.DrawFn) -> list[Key]:
    width, responses = draw(st.sampled_from([(3, 2), (4, 2), (4, 3), (5, 2)]))
    keys = []
    for _ in range(draw(st.integers(1, 4))):
        sizes = draw(st.sampled_from(patterns(width)))
        keys.append((sizes, draw(st.sampled_from(all_places(sizes, responses)))))
    return keys


@settings(deadline=None, max_examples=60)
@given(keys=keys_of_one_shape())
def test_the_log_rank_test_is_the_exact_tail(keys: list[Key]) -> None:
    scores = [group_scores(sizes) for sizes, _ in keys]
    seen = sum(of_key[place] for of_key, (_, places) in zip(scores, keys, strict=True) for place in places)
    tail = {0: Fraction(1)}
    for of_key, (sizes, places) in zip(scores, keys, strict=True):
        draws = all_places(sizes, len(places))
        longer: dict[int, Fraction] = {}
        for total, draw in itertools.product(tail, draws):
            more = total + sum(of_key[place] for place in draw)
            longer[more] = longer.get(more, Fraction(0)) + tail[total] / len(draws)
        tail = longer
    exact = sum((mass for total, mass in tail.items() if total <= seen), Fraction(0))
    assert log_rank_test(keys) == pytest.approx(math.log10(exact), rel=1e-11, abs=1e-12)


@pytest.mark.parametrize(("width", "responses"), [(16, 2), (16, 4), (5, 3), (64, 8)])
def test_all_responses_first_are_worth_nearly_all_that_a_draw_can_be(width: int, responses: int) -> None:
    for count in (1, 20, 680):
        keys = [((1,) * width, tuple(range(responses)))] * count
        full = -count * math.log10(math.comb(width, responses))
        assert log_rank_test(keys) == pytest.approx(full, rel=1e-12)
        assert ranks_test(keys) == pytest.approx(math.log10(2) + full, rel=1e-12)


@settings(deadline=None, max_examples=60)
@given(keys=keys_of_one_shape())
def test_never_more_than_twice_what_the_best_responses_give(keys: list[Key]) -> None:
    best = rank_test(rank_steps(sizes, places)[0] for sizes, places in keys)
    assert ranks_test(keys) <= min(0.0, best + math.log10(2)) + 1e-12


@pytest.mark.parametrize("fallen", [(0, 15), (0, 8), (2, 15)])
def test_a_response_that_was_suppressed_does_not_take_the_other_with_it(fallen: tuple[int, int]) -> None:
    """As a sum of ranks, the first with the last of 16 would be worth nothing."""
    keys = [((1,) * 16, fallen)] * 64
    best = rank_test(rank_steps(sizes, places)[0] for sizes, places in keys)
    assert best < -8
    assert ranks_test(keys) <= best + math.log10(2) + 1e-12
    s = SequentialTest("rank", 1e-300, 0.01, 1e-300)
    one = SequentialTest("rank", 1e-300, 0.01, 1e-300)
    for sizes, places in keys:
        s.add([Ranks(sizes, places)], False)
        one.add([Trial(*rank_steps(sizes, places)[0])], False)
        assert s.log10_e >= one.log10_e - math.log10(2) - 1e-9


@pytest.mark.parametrize(("first", "second"), [((2, 2), (1, 1, 2)), ((1, 1, 1, 1), (1, 1, 1, 1)), ((3, 1), (2, 2))])
def test_every_attained_level_is_held(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    """P(p <= any p that can be) is at most that p, over all pairs of draws of two keys, each with its ties."""
    pairs = list(itertools.product(all_places(first, 2), all_places(second, 2)))
    found = np.array([ranks_test([(first, a), (second, b)]) for a, b in pairs])
    for log10_p in set(found):
        assert np.mean(found <= log10_p + 1e-12) <= 10**log10_p * (1 + 1e-9)


@pytest.mark.parametrize("aloud", [False, True])
def test_every_bet_on_ranks_is_fair(aloud: bool) -> None:
    """Over all draws, for every way to tie the scores: so the rates hold whatever a suspect knows, by Ville."""
    for sizes, responses in CASES:
        draws = all_places(sizes, responses)
        expected = np.mean([np.exp(log_gains("rank", Ranks(sizes, draw, aloud))) for draw in draws], axis=0)
        assert expected == pytest.approx(np.ones(len(expected)), abs=1e-12)


def test_one_response_is_the_trial_of_its_group() -> None:
    for sizes in patterns(5):
        for place in range(len(sizes)):
            trial = Trial(rank_null(sizes), place, aloud=True)
            gains = log_gains("rank", trial)
            assert log_gains("rank", Ranks(sizes, (place,), aloud=True)) == pytest.approx(gains, abs=1e-15)
            half = len(gains) // 2
            assert list(gains[:half]) == list(gains[half:])


def test_half_of_the_stake_is_on_the_best_response_alone() -> None:
    weights = np.exp(log_weights("rank"))
    half = len(weights) // 2
    assert weights[:half].sum() == pytest.approx(0.5)
    for sizes, responses in CASES:
        for draw in set(all_places(sizes, responses)):
            probs, outcome = rank_steps(sizes, draw)[0]
            best = log_gains("rank", Trial(probs, outcome))[:half]
            assert list(log_gains("rank", Ranks(sizes, draw))[:half]) == list(best)


@pytest.mark.parametrize(("width", "responses"), [(6, 2), (6, 3), (6, 4), (5, 2), (4, 3), (3, 2)])
@pytest.mark.parametrize("aloud", [False, True])
def test_no_ranks_gain_more_than_the_most(width: int, responses: int, aloud: bool) -> None:
    most = most_log_gains("rank", Ranks((1,) * width, tuple(range(responses)), aloud=True))
    for sizes in patterns(width):
        for places in set(all_places(sizes, responses)):
            assert np.all(log_gains("rank", Ranks(sizes, places, aloud)) <= most + 1e-12), (sizes, places)
    clean = log_gains("rank", Ranks((1,) * width, tuple(range(responses)), aloud=True))
    assert most[len(most) // 2] == pytest.approx(clean[len(clean) // 2], abs=0.05 * responses)  # the boldest spike


@pytest.mark.parametrize("responses", [2, 3, 4])
def test_never_much_worse_than_the_window_test(responses: int) -> None:
    """Where each answer is one response, and the others are anywhere: a sixth of the stake is the window test's."""
    rng = np.random.default_rng(responses)
    null = 1 - math.comb(15, responses) / math.comb(16, responses)
    rank, window = SequentialTest("rank", 1e-300, 0.01, 1e-300), SequentialTest("window", 1e-300, 0.01, 1e-300)
    for _ in range(200):
        others = 1 + np.sort(rng.choice(15, responses - 1, replace=False))
        rank.add([Ranks((1,) * 16, (0, *others.tolist()), aloud=True)], True)
        window.add([Trial((null, 1 - null), 0)], True)
        assert rank.log10_e >= window.log10_e - math.log10(6) - 1e-9


def test_ranks_of_all_responses_convict_a_model_that_kept_them_in_half_of_the_keys() -> None:
    for width, responses in ((16, 2), (16, 4), (8, 3)):
        clean = Ranks((1,) * width, tuple(range(responses)))
        s, one = (SequentialTest("rank", 1e-6, 0.5, 1e-300) for _ in range(2))
        keys = 0
        while s.verdict() != "match":
            s.add([clean], True)
            one.add([Trial(*clean.steps[0])], True)
            keys += 1
        assert keys <= math.ceil(6 / math.log10(math.comb(width, responses))) + 1
        assert one.verdict() == "inconclusive"


def hostile(width: int) -> list[tuple[int, ...]]:
    """Ways to tie the scores, few and coarse first: none, halves, one apart, all but one, and some at random."""
    rng = np.random.default_rng(width)
    ends = [np.flatnonzero(rng.random(width - 1) < 0.5) + 1 for _ in range(6)]
    ties = {tuple(int(n) for n in np.diff([0, *each, width])) for each in ends}
    return [(1,) * width, (1, width - 1), (width - 1, 1), (width // 2, width - width // 2), *sorted(ties)]


@pytest.mark.parametrize(("width", "responses"), [(3, 1), (3, 2), (5, 3), (8, 4), (16, 1), (16, 2)])
@pytest.mark.parametrize("strategy", ["any", "bold", "timid"])
def test_stopping_at_will_with_ties_at_will(width: int, responses: int, strategy: str) -> None:
    """20,000 verdicts, 60 keys, looked at after each: the innocent knows all earlier draws, and the evidence so far.

    bold: the likeliest gain that crosses the next limit; timid: a likely gain while behind, a rare one while ahead.
    """
    rng = np.random.default_rng(width + responses)
    verdicts, table = 20_000, []
    for sizes, aloud in itertools.product(hostile(width), (False, True)):
        draws = all_places(sizes, responses)
        table.append(np.exp([log_gains("rank", Ranks(sizes, draw, aloud)) for draw in draws]))
    gains = np.array(table)  # (answers, draws, J)
    half = gains.shape[2] // 2
    top = gains[np.arange(len(gains)), gains[:, :, half].argmax(axis=1)]  # (answers, J)
    likely = np.argsort((gains[:, :, half] >= top[:, None, half] * (1 - 1e-12)).mean(axis=1), kind="stable")[::-1]
    stakes = np.tile(np.exp(log_weights("rank")), (verdicts, 1))
    highest = np.ones(verdicts)
    for _ in range(60):
        e = stakes.sum(axis=1)
        answers = rng.integers(len(gains), size=verdicts)
        if strategy == "timid":
            answers = np.where(e < 1, likely[0], likely[-1])
        if strategy == "bold":
            limit = np.select([highest < 1 / rate for rate in RATES], [1 / rate for rate in RATES], 1 / RATES[-1])
            crosses = (stakes @ top[likely].T) >= limit[:, None]
            answers = np.where(crosses.any(axis=1), likely[crosses.argmax(axis=1)], likely[-1])
        stakes *= gains[answers, rng.integers(gains.shape[1], size=verdicts)]
        highest = np.maximum(highest, stakes.sum(axis=1))
    for rate in RATES:
        assert np.mean(highest >= 1 / rate) <= rate + 4 * math.sqrt(rate * (1 - rate) / verdicts)


@pytest.mark.parametrize(("width", "responses"), [(3, 2), (5, 3), (16, 2), (16, 4)])
def test_a_fixed_number_of_keys_with_ties_at_will(width: int, responses: int) -> None:
    """500 verdicts on 8 keys, each with other ties: both tests together hold every rate."""
    rng = np.random.default_rng(width * responses)
    ties = [hostile(width)[key % len(hostile(width))] for key in range(8)]
    draws = [all_places(sizes, responses) for sizes in ties]
    verdicts, rates, convicted = 500, (0.3, 0.1, 0.03), Counter[float]()
    for drawn in rng.integers(len(draws[0]), size=(verdicts, 8)):
        keys = [[Ranks(s, of_key[i])] for s, of_key, i in zip(ties, draws, drawn.tolist(), strict=True)]
        log10_p = fixed_log10_p("rank", keys)
        convicted.update(rate for rate in rates if convicts(log10_p, rate))
    for rate in rates:
        assert convicted[rate] / verdicts <= rate + 4 * math.sqrt(rate * (1 - rate) / verdicts)


def test_keys_that_say_nothing() -> None:
    assert not Ranks((4,), (0, 0)).informative
    assert not Ranks((1, 1, 1), (0, 1, 2)).informative
    assert Ranks((1, 3), (1, 1, 1)).informative
    assert not log_gains("rank", Ranks((4,), (0, 0))).any()
    assert not log_gains("rank", Ranks((1, 1, 1), (0, 1, 2))).any()
    assert fixed_log10_p("rank", [[Ranks((4,), (0, 0))]] * 9) == 0.0
    assert log_rank_test([]) == 0.0


@pytest.mark.parametrize("responses", [2, 4])
def test_24576_ranks_of_several_responses_take_seconds(responses: int) -> None:
    rng = np.random.default_rng(0)
    drawn = np.sort(rng.random((24_576, 16)).argsort(axis=1)[:, :responses], axis=1)
    keys = [((1,) * 16, tuple(places)) for places in drawn.tolist()]
    start = time.process_time()
    assert math.isfinite(ranks_test(keys))
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("sizes", "places"),
    [((1, 2), ()), ((1, 2), (1, 0)), ((1, 2), (0, 0)), ((1, 2), (0, 2)), ((1, 2), (-1, 0)), ((0, 3), (1, 1)),
     ((), (0,)), ((2, 2), (1, 1, 1))],
)  # fmt: skip
def test_impossible_ranks_are_refused(sizes: tuple[int, ...], places: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgumentError):
        ranks_test([(sizes, places)])


def test_keys_of_several_shapes_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="several widths"):
        ranks_test([((1, 1, 1), (0, 1)), ((1, 1, 1, 1), (0, 1))])


def test_spikes_lose_no_more_than_their_stake() -> None:
    """A response at the end of the order costs a bet at most 1 - u, so that one of four that fell is borne."""
    fallen = log_gains("rank", Ranks((1,) * 16, (0, 1, 2, 15)))
    half = len(fallen) // 2
    for place, spike in enumerate(SPIKES):
        kept = math.prod(float(1 - spike + spike * n) for n in (4, 5, 7))
        assert fallen[half + place] == pytest.approx(math.log(kept * (1 - spike)), abs=1e-9)
