"""The simulated error rates on few verdicts; the bets are fair over every draw; a bound that is broken is seen."""

from __future__ import annotations

from dataclasses import replace

import error_rates
import error_suspects
import numpy as np
import pytest
from error_suspects import STRATEGIES, bold, configs, strategies, table

from oml_fast.verify import ExactMatch
from oml_fast.verify.statistics import TESTS

VERDICTS = 2000
PLAIN = [error_suspects.Config(test, ExactMatch(), 16) for test in TESTS]


@pytest.mark.parametrize("config", configs(), ids=str)
def test_no_bet_on_any_answer_gains_on_average(config: error_suspects.Config) -> None:
    """Over all draws, exactly. By Ville's inequality every rate then holds, whatever a suspect does."""
    read = table(config)
    assert read.expected <= 1 + 1e-12
    assert np.all(read.log_factors[:, read.silent] <= 0)


@pytest.mark.parametrize("config", PLAIN, ids=str)
def test_the_simulation_is_the_test_itself(config: error_suspects.Config) -> None:
    """`sequential` asserts it on its first paths."""
    read = table(config)
    for strategy in STRATEGIES:
        met = error_rates.shares(
            error_rates.sequential(read, strategy, 500, np.random.default_rng(0)), error_rates.RATES, 500
        )
        assert met["met"]


def test_a_bold_suspect_comes_near_the_bound() -> None:
    """Else the simulation would not see a bound that is broken a little."""
    read = table(PLAIN[2])
    share = error_rates.sequential(read, bold, 20_000, np.random.default_rng(0))[0] / 20_000
    assert 0.004 < share <= error_rates.limit(0.01, 20_000)


def test_bets_that_are_unfair_are_seen() -> None:
    read = table(PLAIN[2])
    broken = replace(read, log_factors=read.log_factors + 0.05 * (read.log_factors > 0))
    rng = np.random.default_rng(0)
    highest, _, _ = error_rates.paths(broken, bold, 20_000, rng)
    assert broken.expected > 1
    assert error_rates.convicted(highest, 0.01).mean() > 0.0045


def test_every_part_and_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_rates, "configs", lambda: PLAIN)
    monkeypatch.setattr(error_rates, "strategies", lambda config: strategies(config)[:1])
    monkeypatch.setattr(error_rates, "KEYS", 20)
    cases = list(error_rates.parts(20))
    assert {case["part"] for case in cases} == {"sequential", "fixed", "misses", "whole"}
    rows = error_rates.summary(cases, 20)
    assert {row.figure.split(",")[0] for row in rows} >= {"false convictions"}
    assert all(row.met is not None for row in rows)
    worse = [{**case, "met": False} for case in cases]
    assert not any(row.met for row in error_rates.summary(worse, 20)[:-1])
