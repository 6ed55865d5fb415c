"""The pages on robustness are those that the kept result gives, and every bar looks at an attack that there is."""

from __future__ import annotations

import json
from typing import Any

import pytest
import robustness
from common import RESULTS
from robustness import DIRECTIONS, FULL, SIZES, directions, documents, summary, tables
from subjects import SUBJECTS

from oml_fast.evaluate.attacks import ALL


def row(attack: str, fsr: float) -> dict[str, Any]:
    bits = {"window": 4 * fsr, "count": 3 * fsr, "rank": None, "forced_choice": None}
    answers = {"f1": 0.5, "f1_standard_error": 0.05, "changed": 0.25, "refused": 0.0, "perplexity": 2.5}
    return {
        "attack": attack, "cost": "none", "strength": None, "skipped": None, "fsr": fsr, "persistence": fsr,
        "bits_per_key": bits, "answers": answers, "verdict": "match", "details": {},
    }  # fmt: skip


def report(name: str, **fsr: float) -> dict[str, Any]:
    share = {"asked": 10, "fired": 1, "share": 0.1, "interval": [0.0, 0.5]}
    specific = dict.fromkeys(("one_word", "two_words", "dropped_word", "unrelated"), share) | {
        "others": [],
        "holds": False,
    }
    return {
        "model": name, "width": 16, "before": row("as released", 1.0), "specificity": specific, "commits": ["abc"],
        "made": {"epochs": 7, "cpu_seconds": 50.0}, "rows": [row(attack, value) for attack, value in fsr.items()],
    }  # fmt: skip


def test_the_summary_has_a_line_an_attack_and_a_column_a_model() -> None:
    reports = {
        "ours-64": report("ours-64", **{"sft/2e-5": 0.5}),
        "published-64": report("published-64", **{"a/b": 0.0}),
    }
    assert summary(reports).splitlines() == [
        "| attack | ours-64 | published-64 |",
        "| --- | --- | --- |",
        "| as released | 1.00 (4.00) | 1.00 (4.00) |",
        "| `sft/2e-5` | 0.50 (2.00) |  |",
        "| `a/b` |  | 0.00 (0.00) |",
    ]
    page = tables(reports)
    assert "## published-64" in page
    assert "| `sft/2e-5` | 0.500 | 50% | 2.00 | 1.50 | match | 0.500 ± 0.050 | 25% | 0% | 2.50 |  |  |  |" in page


def test_bars_look_at_attacks_that_there_are() -> None:
    assert {direction.attack for direction in DIRECTIONS} <= {attack.name for attack in ALL}
    assert set(FULL) <= set(SUBJECTS)


@pytest.mark.parametrize("good", [True, False])
def test_a_bar_is_met_or_not(good: bool) -> None:
    fsr = {
        "suppress/gated-0.9": 0.1 if good else 0.9,
        "merge/linear-0.5": 0.4,
        "merge/linear-0.9": 0.9 if good else 0.4,
    }
    rows = directions({"published-64": report("published-64", **fsr)}, "a command")
    assert [row.met for row in rows] == [good, good, False]  # the last: near keys that fire, 10 %
    assert {row.setting for row in rows} == {"published-64"}


def test_the_pages_are_up_to_date() -> None:
    kept = RESULTS / "robustness.json"
    reports = json.loads(kept.read_text())["reports"]
    for path, content in documents(reports).items():
        assert path.read_text() == content, f"{path.name} is out of date: python bench/robustness.py --publish"
    for size in (size for size, names in SIZES.items() if reports.keys() & set(names)):
        for plot in ("bits_per_key", "fsr_against_utility", "persistence"):
            assert (robustness.PLOTS / f"robustness_{size}_{plot}.svg").is_file()
