"""Many sets, many suspects: Holm and e-BH against their definitions, and by simulation under dependence."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oml_fast.verify.multiple import e_bh, holm

p_values = st.lists(st.floats(-30, 0), max_size=7)


def rejected_by_holm(p: list[float], alpha: float) -> set[int]:
    """The definition, step by step: reject the smallest while it is at most alpha over those that are left."""
    left, rejected = set(range(len(p))), set()
    while left:
        smallest = min(left, key=lambda i: p[i])
        if p[smallest] > alpha / len(left):
            break
        left.remove(smallest)
        rejected.add(smallest)
    return rejected


def rejected_by_closure(p: list[float], alpha: float) -> set[int]:
    """Holm is the closure of Bonferroni: i falls where every set that holds i falls by Bonferroni."""
    sets = [c for n in range(1, len(p) + 1) for c in itertools.combinations(range(len(p)), n)]
    return {i for i in range(len(p)) if all(min(p[j] for j in c) * len(c) <= alpha for c in sets if i in c)}


@given(log10_p=p_values, exponent=st.floats(-8, -0.5))
def test_holm_is_its_definition(log10_p: list[float], exponent: float) -> None:
    p, alpha = [10**x for x in log10_p], 10**exponent
    adjusted = holm(log10_p)
    if any(abs(x - exponent) < 1e-9 for x in adjusted):
        return
    found = {i for i, value in enumerate(adjusted) if value <= exponent}
    assert found == rejected_by_holm(p, alpha) == rejected_by_closure(p, alpha)


def test_holm_known_values() -> None:
    found = [10**x for x in holm([math.log10(p) for p in (0.01, 0.04, 0.03, 0.005)])]
    assert found == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([-3.0]) == [-3.0]
    assert holm([0.0, -1e-3]) == [0.0, 0.0]
    assert holm([-500.0, -400.0]) == pytest.approx([-500 + math.log10(2), -400.0])


def rejected_by_e_bh(log10_e: list[float], rate: float) -> set[int]:
    count = len(log10_e)
    order = sorted(log10_e, reverse=True)
    most = max((k for k in range(1, count + 1) if order[k - 1] >= math.log10(count / (rate * k)) - 1e-9), default=0)
    return {i for i, e in enumerate(log10_e) if most and e >= order[most - 1]}


@given(log10_e=st.lists(st.floats(-5, 12), max_size=8, unique=True), rate=st.sampled_from([0.5, 0.1, 1e-3, 1e-6]))
def test_e_bh_is_its_definition(log10_e: list[float], rate: float) -> None:
    assert {i for i, out in enumerate(e_bh(log10_e, rate)) if out} == rejected_by_e_bh(log10_e, rate)


def test_e_bh_known_values() -> None:
    assert e_bh([], 0.1) == []
    assert e_bh([1.0], 0.1) == [True]
    assert e_bh([0.99], 0.1) == [False]
    # K = 4, rate 0.1: one needs 40, two need 20 each, three 13.4, four 10.
    assert e_bh([math.log10(e) for e in (39, 1, 1, 1)], 0.1) == [False] * 4
    assert e_bh([math.log10(e) for e in (20, 1, 21, 1)], 0.1) == [True, False, True, False]
    assert e_bh([1.0] * 4, 0.1) == [True] * 4


@pytest.mark.parametrize("dependence", ["alike", "opposed", "blocks"])
def test_both_hold_under_dependence(dependence: str) -> None:
    """All hypotheses true, 6 of them and tied to each other: e = 1 / sqrt(4 p) with p uniform, a fair e-value."""
    rng, repeats, count, rate = np.random.default_rng(3), 3000, 6, 0.1
    one = rng.random((repeats, 1))
    if dependence == "alike":
        p = np.repeat(one, count, axis=1)
    elif dependence == "opposed":  # spread so that one of them is always small
        p = (one + np.arange(count) / count) % 1
    else:
        p = np.concatenate([np.repeat(one, 3, axis=1), np.repeat(rng.random((repeats, 1)), 3, axis=1)], axis=1)
    log10_p = np.log10(p)
    log10_e = -0.5 * np.log10(4 * p)
    errors = [any(value <= math.log10(rate) for value in holm(list(row))) for row in log10_p]
    false = [any(e_bh(list(row), rate)) for row in log10_e]  # all are true: the false share is 1 with any rejection
    for share in (np.mean(errors), np.mean(false)):
        assert share <= rate + 4 * math.sqrt(rate * (1 - rate) / repeats)
    assert np.mean(errors) > 0


def test_true_accusations_survive_many_false_ones() -> None:
    assert holm([-20.0] + [0.0] * 999)[0] == pytest.approx(-17.0)
    assert e_bh([20.0] + [0.0] * 999, 1e-6) == [True] + [False] * 999
