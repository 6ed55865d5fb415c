"""Innocent suspects are convicted no more often than promised, whatever they answer, as long as the draw is secret.

Bulk simulations draw with numpy, 200,000 verdicts each; the whole line (secret.draw, then verify) runs on fewer. Each
simulated share is held against the bound and against the exact level, computed here by a second method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from sets import Scripted, carrier, inside, small_set

from oml_fast.completer import SCORE
from oml_fast.fingerprint import FingerprintSet
from oml_fast.verify import verify
from oml_fast.verify.statistics import convicts, count_test, null_of_asking, null_of_key, window_test

VERDICTS = 200_000
KEYS = 12
RATES = (1e-1, 1e-2, 1e-3)
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def draws(rng: np.random.Generator, width: int, responses: int = 1, verdicts: int = VERDICTS) -> Ints:
    """(T, M, r) indices, drawn without replacement for each verdict and key: fresh secrets."""
    order = np.broadcast_to(np.arange(width, dtype=np.int8), (verdicts, KEYS, width)).copy()
    for slot in range(responses):
        other = rng.integers(slot, width, (verdicts, KEYS, 1))
        taken = np.take_along_axis(order, other, axis=2)
        np.put_along_axis(order, other, order[:, :, slot : slot + 1].copy(), axis=2)
        order[:, :, slot : slot + 1] = taken
    return order[:, :, :responses].astype(np.int64)


def exact_level(nulls: Sequence[float], log10_p: Sequence[float], rate: float) -> float:
    """P(convicted) under H0, by plain convolution of the keys' chances."""
    masses = np.ones(1)
    for null in nulls:
        masses = np.convolve(masses, [1 - null, null])
    return math.fsum(mass for mass, p in zip(masses, log10_p, strict=True) if convicts(p, rate))


def assert_level(matches: Ints, nulls: Sequence[float], most: float) -> None:
    """`matches` (T,) of verdicts whose answers give each key its null: both tests hold their rates.

    `most` is the count test's null. Within four standard errors, and never above the rate in the exact level.
    """
    touched = [null for null in nulls if null > 0]
    window = [window_test(touched, m) for m in range(len(touched) + 1)]
    count = [count_test(m, len(nulls), most) for m in range(len(touched) + 1)]
    for log10_p in (window, count):
        for rate in RATES:
            level = exact_level(touched, log10_p, rate)
            share = float(np.mean(np.array([convicts(p, rate) for p in log10_p])[matches]))
            assert level <= rate * (1 + 1e-8)
            assert abs(share - level) <= 4 * math.sqrt(level * (1 - level) / len(matches)), (rate, level, share)


def matched(drawn: Ints, answers: Ints) -> Bools:
    """(T, M) whether any response of the key is what was answered; answers (M,) or (T, M), -1 for outside."""
    return np.any(drawn == answers[..., None], axis=2)


def test_never_inside_a_window_is_never_convicted() -> None:
    rng = np.random.default_rng(1)
    matches = matched(draws(rng, 16), np.full(KEYS, -1)).sum(axis=1)
    assert not matches.any()
    assert window_test([0.0] * KEYS, 0) == 0.0
    assert_level(matches, [0.0] * KEYS, 1 / 16)


@pytest.mark.parametrize("width", [3, 16])
@pytest.mark.parametrize("strategy", ["first", "last", "each another"])
def test_always_inside_at_fixed_places(width: int, strategy: str) -> None:
    rng = np.random.default_rng(width)
    answers = {"first": np.zeros(KEYS, int), "last": np.full(KEYS, width - 1), "each another": np.arange(KEYS) % width}
    matches = matched(draws(rng, width), answers[strategy]).sum(axis=1)
    assert_level(matches, [1 / width] * KEYS, 1 / width)


@pytest.mark.parametrize("width", [3, 16])
def test_choosing_anew_in_each_verdict(width: int) -> None:
    """Answers picked at random, then what was drawn for the key before: knowing other keys' draws does not help."""
    rng = np.random.default_rng(10 + width)
    drawn = draws(rng, width)
    assert_level(matched(drawn, rng.integers(0, width, drawn.shape[:2])).sum(axis=1), [1 / width] * KEYS, 1 / width)
    before = np.concatenate([np.zeros((VERDICTS, 1), np.int64), drawn[:, :-1, 0]], axis=1)
    assert_level(matched(drawn, before).sum(axis=1), [1 / width] * KEYS, 1 / width)


def test_choosing_how_many_answers_lie_inside() -> None:
    """The number of informative answers differs from verdict to verdict, as the suspect likes."""
    rng = np.random.default_rng(20)
    width = 4
    drawn = draws(rng, width)
    answers = np.where(rng.random(drawn.shape[:2]) < rng.random((VERDICTS, 1)), rng.integers(0, width, KEYS), -1)
    matches, informative = matched(drawn, answers).sum(axis=1), (answers >= 0).sum(axis=1)
    for number in range(KEYS + 1):
        nulls = [1 / width] * number + [0.0] * (KEYS - number)
        assert_level(matches[informative == number], nulls, 1 / width)


@pytest.mark.parametrize(("width", "responses"), [(16, 3), (3, 2), (16, 8)])
def test_several_responses(width: int, responses: int) -> None:
    rng = np.random.default_rng(30 + responses)
    answers = np.where(np.arange(KEYS) % 4, np.arange(KEYS) % width, -1)
    matches = matched(draws(rng, width, responses), answers).sum(axis=1)
    nulls = [null_of_asking(int(answer >= 0), width, responses) for answer in answers]
    assert_level(matches, nulls, null_of_asking(1, width, responses))


@pytest.mark.parametrize(("width", "responses"), [(16, 1), (3, 1), (16, 3)])
def test_two_formats_are_one_trial(width: int, responses: int) -> None:
    """Some answers lie inside both windows, some inside one, some in none."""
    rng = np.random.default_rng(40 + width + responses)
    raw = np.where(np.arange(KEYS) < 9, 0, -1)
    chat = np.where(np.arange(KEYS) > 3, np.arange(KEYS) % width, -1)
    drawn_raw, drawn_chat = draws(rng, width, responses), draws(rng, width, responses)
    matches = (matched(drawn_raw, raw) | matched(drawn_chat, chat)).sum(axis=1)
    one = null_of_asking(1, width, responses)
    nulls = [null_of_key([one * (a >= 0), one * (b >= 0)]) for a, b in zip(raw, chat, strict=True)]
    assert_level(matches, nulls, null_of_key([one, one]))


def test_a_rule_that_accepts_several_candidates() -> None:
    """c of 0 to k candidates accepted in one answer: the window test alone, the count test assumes c <= 1."""
    rng = np.random.default_rng(50)
    width, responses = 5, 2
    accepted = np.arange(KEYS) % (width + 1)
    matches = np.any(draws(rng, width, responses) < accepted[:, None], axis=2).sum(axis=1)
    assert_level(matches, [null_of_asking(int(c), width, responses) for c in accepted], 1.0)


SETTINGS = [
    {"width": 4},
    {"width": 4, "responses_per_key": 2},
    {"width": 4, "formats": ("raw", "chat")},
    {"width": 4, "response_length": 3},
]


@pytest.mark.parametrize("mode", ["fixed", "sequential"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_whole_line_with_fresh_secrets(settings: dict[str, object], mode: str) -> None:
    """secret.draw and verify together: 300 secrets, an innocent that always answers inside the windows."""
    rate, verdicts = 0.1, 300
    convicted = 0
    suspect: Scripted | None = None
    for number in range(verdicts):
        made = small_set(8, secret=number.to_bytes(32, "big"), key_length=2, **settings)
        suspect = suspect or inside(made, [0, 1, 2, 3, 3, 2, -1, 0])
        convicted += verify(made, suspect, mode=mode, false_positive_rate=rate).verdict == "match"
    assert convicted <= verdicts * rate + 4 * math.sqrt(verdicts * rate * (1 - rate))


@pytest.mark.parametrize("mode", ["fixed", "sequential"])
@pytest.mark.parametrize(("width", "responses"), [(3, 1), (4, 2), (5, 3), (16, 4)])
def test_ranks_with_fresh_secrets(width: int, responses: int, mode: str) -> None:
    """300 secrets, an innocent with an order of its own among the candidates of each window, with ties."""
    rate, verdicts, convicted = 0.1, 300, 0
    rng = np.random.default_rng(width)
    settings = {"width": width, "responses_per_key": responses, "key_length": 2}
    made = small_set(8, **settings)
    suspect = inside(made, [place % width for place in range(8)])
    suspect.capabilities = frozenset({SCORE})
    suspect.scores = {
        asking.prompt_ids: tuple(rng.integers(0, width, width).astype(float))
        for fingerprint in made
        for asking in fingerprint.askings.values()
    }
    for number in range(verdicts):
        made = small_set(8, secret=number.to_bytes(32, "big"), **settings)
        convicted += verify(made, suspect, test="rank", mode=mode, false_positive_rate=rate).verdict == "match"
    assert convicted <= verdicts * rate + 4 * math.sqrt(verdicts * rate * (1 - rate))


def with_secret(number: int) -> FingerprintSet:
    return small_set(32, secret=(1000 + number).to_bytes(32, "big"), key_length=2)


def test_a_model_with_another_secrets_fingerprints_is_not_convicted() -> None:
    """Same keys and same windows, another draw: it answers inside every window, and is acquitted."""
    suspect = carrier(with_secret(0))
    assert verify(with_secret(0), suspect, mode="fixed").verdict == "match"
    for number in range(1, 101):
        verification = verify(with_secret(number), suspect, mode="fixed")
        assert verification.informative == 32
        assert verification.verdict == "no_match"
        assert verification.p_value > 1e-6


@pytest.mark.parametrize("test", ["window", "count"])
def test_other_secrets_p_values_are_held_at_ten_percent(test: str) -> None:
    suspect, verdicts = carrier(with_secret(0)), 400
    p = [verify(with_secret(number), suspect, test=test, mode="fixed").p_value for number in range(1, verdicts + 1)]
    assert np.mean(np.array(p) <= 0.1) <= 0.1 + 4 * math.sqrt(0.09 / verdicts)
    assert np.mean(np.array(p) <= 0.5) >= 0.2  # and p is no constant 1
