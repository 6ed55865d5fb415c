"""What a report says of a row: the strongest test that the host's access allows, and the keys that it takes."""

from __future__ import annotations

from typing import Any

import pytest

from oml_fast.evaluate.report import Strongest, cells, keys_to_match, strongest

ANSWERS = {"f1": 0.5, "f1_standard_error": 0.05, "changed": 0.25, "refused": 0.0, "perplexity": None}


def row(verdict: str = "match", *, keys: int = 64, **bits: float | None) -> dict[str, Any]:
    given = {"rank": None, "forced_choice": None, "window": 4.0, "count": 4.0} | bits
    log10_p = {test: -value * keys * 0.30103 for test, value in given.items() if value is not None}
    return {"fsr": 1.0, "bits_per_key": given, "log10_p": log10_p, "verdict": verdict, "answers": ANSWERS}


def test_a_row_kept_before_the_rank_test_shows_the_window_test() -> None:
    assert strongest(row()) == Strongest("window", 4.0, "match", 5)
    old = row("no_match", window=0.0, count=0.0)
    del old["log10_p"]
    assert strongest(old) == Strongest("window", 0.0, "no_match", None)


def test_the_rank_test_decides_where_it_is_there() -> None:
    convicted = row("no_match", rank=2.0, forced_choice=1.5, window=0.0, count=0.0)
    assert strongest(convicted) == Strongest("rank", 2.0, "match", 10)
    assert strongest(row("no_match", rank=0.1, window=0.0)).verdict == "no_match"
    assert strongest(row("match", rank=0.1, window=0.5)).verdict == "inconclusive"
    assert strongest(row("no_match", forced_choice=1.0, window=0.0)).test == "forced_choice"


def test_the_verdict_that_verification_gave_stands() -> None:
    """It knows more than the p-value: silence, and draws that favour what the base model prefers."""
    silent = row("no_match", window=0.0) | {"strongest": {"test": "window", "verdict": "inconclusive"}}
    assert strongest(silent).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("bits", "keys"),
    [(4.0, 5), (1.585, 13), (1.0, 20), (0.5, 40), (19.9315686, 1), (0.005, 3987), (0.0049, None), (0.0, None)],
)
def test_keys_to_a_match(bits: float, keys: int | None) -> None:
    assert keys_to_match(bits) == keys


def test_the_cells_of_the_strongest_test() -> None:
    found = cells(row("no_match", rank=0.01, forced_choice=0.0, window=0.0, count=0.0))
    names = ("bits a key", "verdict", "test", "its bits", "its verdict", "keys")
    assert [found[name] for name in names] == ["0.00", "no_match", "rank", "0.01", "no_match", "1,994"]
    assert cells(row(window=0.0, forced_choice=0.0))["keys"] == "-"
    assert cells(row(forced_choice=1.0))["test"] == "forced choice"
