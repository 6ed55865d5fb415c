"""What one key is worth: ranks and ties against enumeration of all draws, and every test's reading of answers."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sets import OUTSIDE, small_set, text_of

from oml_fast.completer import Completion
from oml_fast.errors import CompleterError, InvalidArgumentError
from oml_fast.verify import ExactMatch, PrefixMatch, WithinMatch
from oml_fast.verify.statistics import rank_null, rank_test
from oml_fast.verify.trials import Ranks, Trial, chosen, count_null, match_trial, rank_trial, read

EXACT = ExactMatch()


def patterns(width: int) -> list[tuple[int, ...]]:
    """All ways in which `width` scores can be tied, the best group first."""
    return [
        tuple(int(n) for n in np.diff([0, *cuts, width]))
        for parts in range(width)
        for cuts in itertools.combinations(range(1, width), parts)
    ]


@pytest.mark.parametrize("width", [2, 3, 4, 5, 6])
def test_rank_null_is_the_share_of_draws(width: int) -> None:
    for sizes in patterns(width):
        group = [place for place, size in enumerate(sizes) for _ in range(size)]
        for responses in range(1, width + 1):
            draws = list(itertools.combinations(range(width), responses))
            found = Counter(min(group[i] for i in draw) for draw in draws)
            shares = tuple(found[place] / len(draws) for place in range(len(sizes)) if found[place])
            assert rank_null(sizes, responses) == pytest.approx(shares, abs=1e-15)
            assert math.fsum(rank_null(sizes, responses)) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("sizes", [(), (3, 0), (-1, 4)])
def test_groups_without_candidates_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgumentError):
        rank_null(sizes)


@pytest.mark.parametrize("responses", [0, 4, -1])
def test_more_responses_than_candidates_are_refused(responses: int) -> None:
    with pytest.raises(InvalidArgumentError):
        rank_null((1, 2), responses)


def brute_force(trials: Sequence[tuple[Sequence[Fraction], int]]) -> Fraction:
    """P(sum of middle scores <= the sum seen), by enumeration in rationals; scores in whole 96ths, halves to even."""

    def scores(probs: Sequence[Fraction]) -> list[int]:
        ends = list(itertools.accumulate(probs))
        return [round(96 * (end - prob / 2)) for end, prob in zip(ends, probs, strict=True)]

    seen = sum(scores(probs)[outcome] for probs, outcome in trials)
    total = Fraction(0)
    for outcomes in itertools.product(*(range(len(probs)) for probs, _ in trials)):
        if sum(scores(probs)[o] for (probs, _), o in zip(trials, outcomes, strict=True)) <= seen:
            total += math.prod((probs[o] for (probs, _), o in zip(trials, outcomes, strict=True)), start=Fraction(1))
    return total


def shares(sizes: Sequence[int]) -> tuple[Fraction, ...]:
    return tuple(Fraction(size, sum(sizes)) for size in sizes)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_rank_test_is_the_exact_tail(data: st.DataObject) -> None:
    trials = []
    for _ in range(data.draw(st.integers(0, 5))):
        probs = shares(data.draw(st.sampled_from([*patterns(3), *patterns(4), (1, 15), (4, 12), (1, 1, 14)])))
        trials.append((probs, data.draw(st.integers(0, len(probs) - 1))))
    exact = brute_force(trials)
    found = rank_test(([float(p) for p in probs], outcome) for probs, outcome in trials)
    assert found == pytest.approx(math.log10(exact), rel=1e-11, abs=1e-12)


@pytest.mark.parametrize("width", [2, 3, 16])
def test_all_first_is_the_width_to_the_number_of_keys(width: int) -> None:
    for count in (1, 20, 680):
        found = rank_test((rank_null((1,) * width), 0) for _ in range(count))
        assert found == pytest.approx(-count * math.log10(width), rel=1e-12)


@pytest.mark.parametrize(("firsts", "count"), [(253, 256), (174, 256), (86, 256), (0, 40)])
def test_rank_test_to_fifty_digits(firsts: int, count: int) -> None:
    """k = 3 with `firsts` first and the others second: the tail of a sum of 0, 1 and 2, in whole numbers."""
    ways = [1]
    for _ in range(count):
        longer = [*ways, 0, 0]
        ways = [sum(longer[n - step] for step in range(3) if 0 <= n - step < len(ways)) for n in range(len(longer))]
    tail = Fraction(sum(ways[: count - firsts + 1]), 3**count)
    exact = math.log10(tail.numerator) - math.log10(tail.denominator)
    found = rank_test(((1 / 3, 1 / 3, 1 / 3), 0 if place < firsts else 1) for place in range(count))
    assert found == pytest.approx(exact, rel=1e-11, abs=1e-12)


@pytest.mark.parametrize(
    "trial", [((0.5, 0.5), 2), ((0.5, 0.5), -1), ((0.5, 0.4), 0), ((0.5, 0.5, 0.1), 0), ((math.nan, 0.5), 0)]
)
def test_impossible_ranks_are_refused(trial: tuple[tuple[float, ...], int]) -> None:
    with pytest.raises(InvalidArgumentError):
        rank_test([trial])


def test_one_group_says_nothing() -> None:
    assert rank_test([((1.0,), 0)] * 9) == 0.0
    assert rank_test([]) == 0.0


def seconds(keys: Sequence[tuple[tuple[float, ...], int]]) -> float:
    start = time.process_time()
    assert math.isfinite(rank_test(keys))
    return time.process_time() - start


def test_24576_ranks_take_seconds() -> None:
    rng = np.random.default_rng(0)
    keys = [(rank_null((1,) * 16), int(place)) for place in rng.integers(0, 16, 24_576)]
    assert seconds(keys) < 5


@pytest.mark.slow
def test_ties_of_every_kind_do_not_hold_a_verdict_up() -> None:
    """A suspect may tie its scores as it likes: 24,576 keys with thousands of patterns still get their p-value."""
    rng = np.random.default_rng(0)
    keys = []
    for _ in range(24_576):
        sizes = np.diff([0, *(np.flatnonzero(rng.random(15) < 0.5) + 1), 16])
        keys.append((rank_null([int(size) for size in sizes]), int(rng.integers(len(sizes)) // 2)))
    assert seconds(keys) < 60


SETTINGS = [{"width": 4}, {"width": 4, "responses_per_key": 2}, {"width": 3, "formats": ("raw", "chat")}]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_a_rank_trial_for_each_format(options: dict[str, object]) -> None:
    made = small_set(30, **options)
    width = made.settings.width
    for fingerprint in made:
        answers = {n: Completion((OUTSIDE,), "", scores=tuple(range(width))) for n in fingerprint.askings}
        reading = read("rank", EXACT, made.settings, fingerprint, answers)
        assert len(reading.trials) == len(fingerprint.askings)
        for trial, asking in zip(reading.trials, fingerprint.askings.values(), strict=True):
            places = tuple(sorted(width - 1 - response.index for response in asking.responses))
            assert trial == (
                Trial(rank_null((1,) * width), places[0]) if len(places) == 1 else Ranks((1,) * width, places)
            )


def test_tied_scores_are_one_group() -> None:
    made = small_set(1, width=4)
    asking = made.fingerprints[0].askings["raw"]
    index = asking.responses[0].index
    scores = [5.0 if i == index else -math.inf for i in range(4)]
    assert rank_trial(asking, Completion((), "", scores=tuple(scores)), made.settings) == Trial((0.25, 0.75), 0)
    scores = [-math.inf if i == index else 5.0 for i in range(4)]
    assert rank_trial(asking, Completion((), "", scores=tuple(scores)), made.settings) == Trial((0.75, 0.25), 1)
    assert not rank_trial(asking, Completion((), "", scores=(-math.inf,) * 4), made.settings).informative
    assert not rank_trial(asking, Completion((), "", scores=(0.0, -0.0, 0, False)), made.settings).informative


def test_several_responses_and_tied_scores() -> None:
    made = small_set(1, width=4, responses_per_key=2)
    asking = made.fingerprints[0].askings["raw"]
    first, second = (response.index for response in asking.responses)

    def ranks(of_first: float, of_second: float, others: float) -> Trial | Ranks:
        scores = [of_first if i == first else of_second if i == second else others for i in range(4)]
        return rank_trial(asking, Completion((), "", scores=tuple(scores)), made.settings, True)

    assert ranks(2.0, 3.0, 1.0) == Ranks((1, 1, 2), (0, 1), True)
    assert ranks(3.0, 3.0, 1.0) == Ranks((2, 2), (0, 0), True)
    assert ranks(3.0, -math.inf, 1.0) == Ranks((1, 2, 1), (0, 2), True)
    assert ranks(1.0, 3.0, 1.0) == Ranks((1, 3), (0, 1), True)
    assert ranks(-math.inf, -math.inf, 1.0) == Ranks((2, 2), (1, 1), True)
    assert not ranks(1.0, 1.0, 1.0).informative


@pytest.mark.parametrize("scores", [None, (), (1.0, 2.0, 3.0), (1.0,) * 5, (1.0, 2.0, 3.0, math.nan)])
def test_scores_that_are_none_are_the_suspects_fault(scores: tuple[float, ...] | None) -> None:
    made = small_set(1, width=4)
    answers = {"raw": Completion((OUTSIDE,), "", scores=scores)}
    with pytest.raises(CompleterError, match="no score for each of 4 candidates"):
        read("rank", EXACT, made.settings, made.fingerprints[0], answers)


def test_a_choice_by_id_or_by_text() -> None:
    asking = small_set(1, width=4).fingerprints[0].askings["raw"]
    for place, token_id in enumerate(asking.window.token_ids):
        assert chosen(asking, Completion((token_id,), "anything")) == (place,)
        assert chosen(asking, Completion((), text_of([token_id]).strip() + "\n")) == (place,)
    for other in (Completion((OUTSIDE,), asking.window.texts[0]), Completion((), "other"), Completion((), " ")):
        assert chosen(asking, other) == ()
    alike = replace(asking, window=replace(asking.window, texts=(" a", "a", "a b", "")))
    assert chosen(alike, Completion((), "a")) == (0, 1)
    assert chosen(alike, Completion((), "")) == ()


@pytest.mark.parametrize("test", ["window", "count", "forced_choice", "rank"])
def test_silence_is_no_match_and_says_so(test: str) -> None:
    made = small_set(1, width=4, formats=("raw", "chat"))
    fingerprint = made.fingerprints[0]
    reading = read(test, EXACT, made.settings, fingerprint, {"raw": None, "chat": None})
    assert (reading.matched_formats, reading.answered, reading.satisfied) == ((), False, {"raw": 0, "chat": 0})
    if test == "count":  # whose chances do not follow from the answers: silence costs
        assert [(trial.informative, trial.outcome) for trial in reading.trials] == [(True, 1)]
    else:
        assert not any(trial.informative for trial in reading.trials)
    right = Completion(fingerprint.askings["chat"].responses[0].token_ids, "", scores=(0.0,) * 4)
    half = read(test, EXACT, made.settings, fingerprint, {"raw": None, "chat": right})
    assert (half.matched_formats, half.answered) == (("chat",), False)


def test_the_count_tests_chance_is_never_less_than_the_windows() -> None:
    made = small_set(1, width=4)
    asking = made.fingerprints[0].askings["raw"]
    several = Completion((), "".join(asking.window.texts[:3]))
    answers = {"raw": several}
    rule = WithinMatch(3)
    counted = read("count", rule, made.settings, made.fingerprints[0], answers).trials[0]
    assert counted.probs[0] == 0.75
    assert read("count", rule, made.settings, made.fingerprints[0], {"raw": Completion((), "no")}).trials[0].probs[
        0
    ] == pytest.approx(count_null(made.settings))


@pytest.mark.parametrize(
    ("rule", "answer"),
    [(WithinMatch(3), Completion((11, 12, 13), "")), (WithinMatch(3), Completion((), " one two three")),
     (PrefixMatch(), Completion((), " onetwo"))],
    ids=str,
)  # fmt: skip
def test_without_windows_one_answer_may_hold_several_candidates(rule: WithinMatch, answer: Completion) -> None:
    """An imported set: which candidates an answer touched cannot be counted, so its chance must be what it may be.

    Over every draw from three candidates that the answer all names, the expected factor of a bet is at most 1.
    """
    made = small_set(1, width=3)
    fingerprint = made.fingerprints[0]
    asking = fingerprint.askings["raw"]
    empty = replace(asking.window, token_ids=(), texts=(), probs=())
    factors = []
    texts = (" one", " onet", " onetwo") if rule.name == "prefix" else (" one", " two", " three")
    for token_id, text in zip((11, 12, 13), texts, strict=True):
        response = replace(asking.responses[0], index=None, token_ids=(token_id,), text=text)
        drawn = replace(fingerprint, askings={"raw": replace(asking, window=empty, responses=(response,))})
        (trial,) = read("count", rule, made.settings, drawn, {"raw": answer}).trials
        chance = trial.probs[0] if trial.informative else 1.0
        factors.append(1 / chance if trial.outcome == 0 else 0.0)  # the bet that it matches
    assert math.fsum(factors) / 3 <= 1 + 1e-12


def test_a_certain_trial_says_nothing() -> None:
    assert not match_trial(1.0, True).informative
    assert not match_trial(1.0, False).informative  # c / k is an upper bound where responses are longer
    assert not match_trial(0.0, False).informative
    assert match_trial(0.25, True) == Trial((0.25, 0.75), 0)
