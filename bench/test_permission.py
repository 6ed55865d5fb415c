"""The arithmetic of what a permission costs: differences, ratios and their intervals, and which bars are met."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import bench_permission
import numpy as np
import permission_stub
import permission_vllm
import pytest
from gating import Owner
from permission_stub import ALONE, ANSWER, BODIES, GATED, LONG, SHORT, SQLITE, Asked, Stub, added, asked_in_turn, scope
from permission_vllm import OFF, compared, with_interval

SETTING = "asyncio, one core of CPU"


def test_what_is_added_is_the_difference_within_each_round() -> None:
    """Half of the rounds are slow for both sides, which cancels out."""
    alone = [(1.0, 1.0), (1001.0, 1001.0)] * 50
    gated = [(31.0, 41.0), (1031.0, 1041.0)] * 49 + [(31.0, 41.0), (6001.0, 7001.0)]
    found = added({ALONE: alone, "session": gated}, "session")
    assert found["answered"]["median"] == pytest.approx(30.0)
    assert found["done"] == {"median": pytest.approx(40.0), "p99": pytest.approx(40.0 + 0.01 * 5960)}


def case(store: str, body: str, median: float, p99: float) -> dict[str, Any]:
    each = {"answered": {"median": median / 2, "p99": p99}, "done": {"median": median, "p99": p99}}
    rates = {name: [3.0, 1.0, 2.0] for name in GATED} | {ALONE: [40.0, 80.0, 60.0]}
    return {
        "store": store, "body": body, "bytes": 331, "alone": {"median": 1.0, "p99": 2.0},
        "added": dict.fromkeys(GATED, each), "rates": rates,
    }  # fmt: skip


def test_bars_hold_for_the_short_body_and_the_default_store_alone() -> None:
    found = permission_stub.figures(case(SQLITE, SHORT, 34.9, 1001.0), SETTING)
    medians = [(row.setting.split(";")[0], row.bar, row.met) for row in found if row.figure.endswith("median")]
    assert medians == [
        ("session", "<= 35 us", True),
        ("session, quota", "<= 35 us", True),
        ("once", "<= 150 us", True),
    ]
    late = [(row.value, row.bar, row.met) for row in found if row.figure.endswith("p99")]
    assert late == [("1001 us", "<= 1000 us", False)] * 2
    for store, body in ((SQLITE, LONG), ("PostgreSQL", SHORT)):
        assert all(row.met is None for row in permission_stub.figures(case(store, body, 34.9, 1001.0), SETTING))
    (slow, *_) = permission_stub.figures(case(SQLITE, SHORT, 35.1, 1.0), SETTING)
    assert slow.met is False
    assert "17.6 us of it until the answer's end" in slow.setting


def test_rates_are_medians_of_rounds() -> None:
    rows = [
        row for row in permission_stub.figures(case(SQLITE, SHORT, 1.0, 1.0), SETTING) if "per second" in row.figure
    ]
    assert [row.value for row in rows] == ["2"] * 3
    assert all("app alone 60, 30.0 times as many" in row.setting for row in rows)


def test_checks_have_their_bars() -> None:
    kinds = {kind: {"median": 150.0, "p99": 200.0} for kind in bench_permission.KINDS}
    rows = bench_permission.check_figures({"memory": kinds, SQLITE: kinds}, "CPU")
    assert [(row.figure, row.met) for row in rows if row.met is not None] == [
        ("permission check, session, cached", False),
        ("permission check, once", True),
    ]
    assert all(row.setting.endswith("one core of CPU") for row in rows)


def test_an_interval_holds_the_statistic_and_is_that_of_the_bootstrap() -> None:
    pairs = np.stack([np.ones(400), np.random.default_rng(1).normal(1.0, 0.1, 400)], axis=1)
    found = with_interval(pairs, lambda drawn: drawn[..., 1].mean(-1))
    error = pairs[:, 1].std() / 20
    assert found["value"] == pairs[:, 1].mean()
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert found["low"] < found["value"] < found["high"]
    same = with_interval(np.ones((50, 2)), lambda drawn: np.median(drawn[..., 0], axis=-1))
    assert same == {"value": 1.0, "low": 1.0, "high": 1.0}


def rounds(wall: float, cpu: float, pairs: int = 60) -> list[dict[str, dict[str, float]]]:
    """Each third round is slow for both sides."""
    slow = [10.0 if number % 3 == 0 else 1.0 for number in range(pairs)]
    return [{OFF: {"wall": by, "cpu": 2.0 * by}, "session": {"wall": by * wall, "cpu": 2.0 * by * cpu}} for by in slow]


def test_a_side_is_compared_within_each_round() -> None:
    found = compared(rounds(1.25, 1.02), "session", 20)
    assert found["pairs"] == 60
    assert found["throughput"] == {"value": pytest.approx(0.8), "low": pytest.approx(0.8), "high": pytest.approx(0.8)}
    assert found["cpu"]["value"] == pytest.approx(1.02)
    assert found["cpu_ms"] == {"off": pytest.approx(400.0), "on": pytest.approx(408.0)}
    assert found["per_second"] == {"off": 20.0, "on": 16.0}


SLOWER_BY = [(1.02, 1.005, (True, True)), (1.06, 1.02, (False, False)), (0.9, 1.0, (False, True))]


@pytest.mark.parametrize(("wall", "cpu", "met"), SLOWER_BY)
def test_the_whole_interval_must_lie_inside(wall: float, cpu: float, met: tuple[bool, bool]) -> None:
    """A gate that makes a server ten percent faster was not measured well."""
    found = compared(rounds(wall, cpu), "session", 20)
    rows = permission_vllm.figures("session", found, "vLLM 1 on 2 cores of CPU")
    assert tuple(row.met for row in rows) == met
    assert all("vLLM 1 on 2 cores of CPU" in row.setting for row in rows)
    assert [row.met for row in permission_vllm.figures("once", found, "vLLM")] == [None, None]


def test_an_interval_that_is_too_wide_is_not_inside() -> None:
    wide = [{OFF: {"wall": 1.0, "cpu": 1.0}, "session": {"wall": wall, "cpu": 1.0}} for wall in [0.8, 1.2] * 5 + [1.0]]
    found = compared(wide, "session", 20)
    assert found["throughput"]["value"] == 1.0
    assert permission_vllm.figures("session", found, "vLLM")[0].met is False


def test_what_the_client_waits_for_ends_before_the_app_is_done() -> None:
    class Slow(Stub):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await super().__call__(scope, receive, send)
            await asyncio.sleep(0.02)

    asked = asyncio.run(Asked(b"{}").of(Slow(), scope("", b"{}")))
    assert asked.answer == (200, ANSWER)
    assert 0 < asked.answered < 20_000_000 <= asked.done


@pytest.mark.parametrize("kind", GATED)
def test_each_request_is_measured_on_both_sides(tmp_path: Path, kind: str) -> None:
    owner = Owner(tmp_path)
    taken = asyncio.run(asked_in_turn(owner, owner.settings(), BODIES[SHORT], kind, 5))
    assert {name: len(each) for name, each in taken.items()} == {ALONE: 5, kind: 5}
    assert all(0 < answered <= done for each in taken.values() for answered, done in each)
    assert np.median([done for _, done in taken[kind]]) > np.median([done for _, done in taken[ALONE]])


def test_saturated_rounds_answer_every_request(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    rates = asyncio.run(permission_stub.saturated(owner, owner.settings(), BODIES[SHORT], 100, 2))
    assert set(rates) == {ALONE, *GATED}
    assert all(len(each) == 2 and min(each) > 0 for each in rates.values())


def test_bodies_have_the_lengths_that_they_should() -> None:
    assert 200 <= len(BODIES[SHORT]) <= 500
    assert 99_000 <= len(BODIES[LONG]) <= 101_000
    assert all(json.loads(body)["max_tokens"] == 16 for body in BODIES.values())


def test_one_core_is_one_and_goes_back() -> None:
    before = os.sched_getaffinity(0)
    with bench_permission.one_core():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_the_settings_for_a_real_server_can_be_read(tmp_path: Path) -> None:
    from oml_fast.serving.gate_settings import read_gate_settings

    owner = Owner(tmp_path)
    found = read_gate_settings(permission_vllm.write_settings(owner, "cd" * 32))
    assert found == owner.settings(models={"suspect": "cd" * 32})
