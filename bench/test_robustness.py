"""The pages on robustness are those that the kept result gives, and every bar looks at an attack that there is."""

from __future__ import annotations

import json
from typing import Any

import pytest
import robustness
from common import RESULTS
from robustness import (
    DIRECTIONS,
    FULL,
    KEPT,
    PRESETS,
    SIZES,
    directions,
    documents,
    drawn,
    outcomes,
    robust_bars,
    summary,
    tables,
)
from subjects import SUBJECTS

from oml_fast.evaluate.attacks import ALL


def row(attack: str, fsr: float, rank: float | None = None) -> dict[str, Any]:
    bits = {"window": 4 * fsr, "count": 3 * fsr, "rank": rank, "forced_choice": rank}
    log10_p = {test: -0.30103 * 64 * value for test, value in bits.items() if value is not None}
    answers = {"f1": 0.5, "f1_standard_error": 0.05, "changed": 0.25, "refused": 0.0, "perplexity": 2.5}
    return {
        "attack": attack, "cost": "none", "strength": None, "skipped": None, "fsr": fsr, "persistence": fsr,
        "bits_per_key": bits, "log10_p": log10_p, "answers": answers, "verdict": "match" if fsr > 0.1 else "no_match",
        "details": {},
    }  # fmt: skip


def report(name: str, **fsr: float) -> dict[str, Any]:
    share = {"asked": 10, "fired": 1, "share": 0.1, "interval": [0.0, 0.5]}
    specific = dict.fromkeys(("one_word", "two_words", "dropped_word", "unrelated"), share) | {
        "others": [],
        "holds": False,
    }
    return {
        "model": name, "num_fingerprints": 64, "width": 16, "before": row("as released", 1.0),
        "specificity": specific, "commits": ["abc"],
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
    assert "| `a/b` | 0.000 | 0% | 0.00 | 0.00 | no_match | window | 0.00 | no_match | - |" in page
    left = "0.500 | 50% | 2.00 | 1.50 | match | window | 2.00 | match | 10"
    assert f"| `sft/2e-5` | {left} | 0.500 ± 0.050 | 25% | 0% | 2.50 |  |  |  |" in page


def test_bars_look_at_attacks_that_there_are() -> None:
    assert {direction.attack for direction in DIRECTIONS} <= {attack.name for attack in ALL}
    assert set(KEPT) <= {attack.name for attack in ALL}
    assert set(FULL) - set(PRESETS) <= set(SUBJECTS)


def test_the_presets_stand_beside_the_others_and_take_the_place_of_ours_in_the_plots() -> None:
    reports = {name: report(name, **{"a/b": 1.0}) for name in FULL}
    assert summary(reports).splitlines()[0] == f"| attack | {' | '.join(FULL)} |"
    assert "- robust-256, 1 attacks: `a/b`." in outcomes(reports)
    page = tables(reports)
    assert "256 fingerprints, width 16, perinucleus responses, the preset robust: 7 epochs" in page
    assert list(drawn(SIZES[64], reports)) == ["ours-64", "published-64"]
    assert list(drawn(SIZES[256], reports)) == ["published-256", "harmless-256", "robust-256"]
    old = {name: reports[name] for name in FULL if name not in PRESETS}
    assert list(drawn(SIZES[256], old)) == ["ours-256", "published-256"]


def robust(rows: list[dict[str, Any]], kl: float) -> dict[str, Any]:
    before = row("as released", 1.0, rank=4.0) | {"text": {"kl": kl, "perplexity": 20.0}}
    return {"robust-256": report("robust-256") | {"before": before, "rows": rows}}


def test_the_robust_preset_has_its_bars() -> None:
    ruined = row("pruning/0.5", 0.0, rank=0.1) | {"strength": 0.5}  # not benign
    mild = row("pruning/0.3", 0.3, rank=1.5) | {"strength": 0.3}
    skipped = {"attack": "sft/2000", "cost": "", "strength": None, "skipped": "too few"}
    rows = [row("merge/linear-0.5", 0.0, rank=2.0), row("suppress/top-1", 0.9), ruined, mild, skipped]
    found = robust_bars(robust(rows, kl=0.07), "how")
    assert [(f.figure, f.value, f.bar, f.met) for f in found] == [
        ("bits a spent key, as released", "4.00 (rank test, a match takes 5 keys)", ">= 3.5", True),
        (
            "bits a spent key, worst benign attack of 2: pruning/0.3",
            "1.50 (rank test, a match takes 14 keys)",
            ">= 1",
            True,
        ),
        (
            "bits a spent key, worst suppression of 1: suppress/top-1",
            "3.60 (window test, a match takes 6 keys)",
            ">= 0.5",
            True,
        ),
        ("match at 1e-6 by the strongest test", "3 of 4; not after pruning/0.5", "after each attack", False),
        ("FSR after merge/linear-0.5", "0.000", ">= 0.7", False),
        ("FSR after suppress/top-1", "0.900", ">= 0.8", True),
        ("KL to the base on text", "0.070", "<= 0.1", True),
    ]
    assert {f.setting for f in found} == {"robust-256"}
    assert robust_bars({"ours-256": report("ours-256")}, "how") == []


def test_bars_that_are_not_met_say_so() -> None:
    rows = [row("prompts/chat", 0.0), row("suppress/top-1", 0.0), row("suppress/gated-0.9", 1.0)]
    found = {f.figure: f for f in robust_bars(robust(rows, kl=0.11), "how")}
    worst = found["bits a spent key, worst suppression of 2: suppress/top-1"]
    assert (worst.value, worst.met) == ("0.00 (window test)", False)
    assert not found["bits a spent key, worst benign attack of 1: prompts/chat"].met
    verdicts = found["match at 1e-6 by the strongest test"]
    assert (verdicts.value, verdicts.met) == ("1 of 3; not after prompts/chat, suppress/top-1", False)
    assert not found["KL to the base on text"].met
    assert found["FSR after suppress/gated-0.9"].met


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
