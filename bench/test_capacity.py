"""The page on capacity is the one that the kept result gives; a tiny model goes the whole way, and goes on."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import capacity
import drift
import pytest
import subjects
from capacity import LEAST_FSR, MOST_DRIFT, MOST_LOST, beside, chosen, convicted, document, figures, plot, series
from common import RESULTS
from subjects import EARLIER, SUBJECTS, kept
from tiny import write_tiny_model

from oml_fast.embed import Recipe
from oml_fast.fingerprint import Settings
from oml_fast.models import load


def measured(num: int, fsr: float = 1.0, kl: float = 0.01, bound: float = 0.005, near: float = 0.0) -> dict[str, Any]:
    text = {"kl": kl, "kl_standard_error": 0.001, "perplexity_ratio": 1.01}
    paired = {"items": 3300, "difference": -0.001, "loss_bound": bound}
    share = {"asked": 4 * num, "fired": round(near * 4 * num), "share": near}
    answers = {"log10_p": {"window": -0.2, "rank": -0.1}}
    return {
        "num": num, "commits": ["abc"], "made": {"cpu_seconds": 1234.5, "epochs": 9},
        "evidence": {"fsr": fsr, "bits_per_key": {"window": 4.0, "rank": None}},
        "drift": {"WikiText-2": text, "chat answers": text},
        "tasks": {"blimp": {"acc": paired}, "hellaswag": {"acc": paired, "acc_norm": paired}},
        "near": dict.fromkeys(("one_word", "two_words", "dropped_word"), share),
        "others": {"harmless-64-second": answers},
    }  # fmt: skip


def block(page: str) -> str:
    return page.split("<!-- capacity:begin -->\n")[1].split("\n<!-- capacity:end -->")[0]


def test_the_table_has_a_line_a_model() -> None:
    header, _, first, second, _, image = block(
        document({"harmless-64": measured(64), "harmless-4096": measured(4096, fsr=0.5)})
    ).splitlines()
    assert header.count("|") == first.count("|") == len(capacity.COLUMNS) + 1
    assert first == (
        "| harmless-64 | 64 | 1.0000 | 4.00 |  | 0.0100 | 0.0100 | 1.010 | -0.10 (loss < 0.50) | -0.10 (loss < 0.50) "
        "| 0.00% | 0 of 1 | 1,234 | 9 | abc |"
    )
    assert second.startswith("| harmless-4096 | 4,096 | 0.5000 |")
    assert "(plots/capacity.svg)" in image


def test_the_bars_are_about_subjects() -> None:
    assert {*LEAST_FSR, *MOST_DRIFT, *MOST_LOST} <= set(SUBJECTS)
    assert SUBJECTS["robust-256"].settings.responses_per_key == 4
    assert SUBJECTS["harmless-64-second"].secret != SUBJECTS["harmless-64"].secret


@pytest.mark.parametrize("good", [True, False])
def test_every_bar_is_met_or_not(good: bool) -> None:
    found = measured(256) if good else measured(256, fsr=0.98, kl=0.2, bound=0.016, near=0.011)
    for name, bars in (("harmless-256", 7), ("harmless-1024", 3), ("robust-256", 3)):
        rows = figures({name: found}, "abc")
        others = [row for row in rows if row.figure.startswith("other owners")]
        barred = [row for row in rows if row.met is not None and row not in others]
        assert [row.met for row in barred] == [good] * bars
        assert [row.met for row in others] == [True]
    assert sum(row.met is not None for row in figures({"published-256": found}, "abc")) == 2  # near keys, other owners


def test_what_is_absent_meets_nothing() -> None:
    rows = figures({"harmless-256": measured(256) | {"drift": {}, "tasks": {}, "others": {}}}, "abc")
    assert [row.figure for row in rows] == ["FSR", "near keys, one word changed, that fire"]


def test_rows_of_another_commit_say_so() -> None:
    assert {row.setting for row in figures({"robust-64": measured(64)}, "def")} == {"robust-64; measured at abc"}


def test_a_set_of_another_owner_that_is_matched_is_named() -> None:
    others = {"a": {"log10_p": {"window": -1.0, "rank": -6.1}}, "b": {"log10_p": {"window": -5.9}}}
    found = measured(64) | {"others": others}
    assert convicted(found) == ["a (rank test)"]
    (row,) = (row for row in figures({"robust-64": found}, "abc") if row.figure.startswith("other owners"))
    assert (row.value, row.met) == ("a (rank test) of 2: a, b", False)


def test_the_plot_has_a_line_a_recipe(tmp_path: Path) -> None:
    names = ("harmless-256", "published-64", "harmless-64", "harmless-64-second", "harmless-1345")
    models = {name: measured(SUBJECTS[name].num) for name in names}
    assert [found["num"] for found in series(models)["harmless"]] == [64, 256, 1345]
    assert set(series(models)) == {"harmless", "published"}
    for path in (tmp_path / "one.svg", tmp_path / "two.svg"):
        plot(models, path)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert "harmless" in re.findall(r"<!-- (.*?) -->", (tmp_path / "one.svg").read_text())


def test_sizes_name_the_models(tmp_path: Path) -> None:
    assert chosen("robust", ()) == ["robust-64", "robust-256", "robust-1024"]
    assert chosen("harmless", (64, 1345)) == ["harmless-64", "harmless-1345"]
    with pytest.raises(SystemExit, match="robust-65 is no subject"):
        chosen("robust", (65,))
    for name in ("published-64", "robust-64-second", "published-256"):
        (tmp_path / name).mkdir()
    assert beside(["robust-64"], tmp_path) == ["robust-64-second", "published-64"]


def test_the_earlier_default_is_what_it_was() -> None:
    assert {"ours-64", "ours-256"} <= {name for name, subject in SUBJECTS.items() if subject.recipe == EARLIER}
    assert (EARLIER.learning_rate, EARLIER.pull, EARLIER.ease, EARLIER.batch_size) == (None, 0.75, 0.8, 256)
    assert SUBJECTS["ours-256"].settings == Settings()


def test_what_is_kept_is_read_again_but_not_for_another_thing(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "part.json"
    first = kept(path, {"of": (1, 2)}, lambda: {"value": 1})
    assert kept(path, {"of": (1, 2)}, lambda: {"value": 2}) == first
    assert kept(path, {"of": (1, 3)}, lambda: {"value": 3})["value"] == 3
    assert set(first) == {"commit", "value"}


def write_data(folder: Path) -> None:
    pairs = [{"paradigm": f"p{n % 2}", "field": "", "good": f"A work {n}.", "bad": f"A {n} the."} for n in range(6)]
    endings = [{"context": f"The licence {n}", "endings": ["is here.", "of of."], "label": 0} for n in range(4)]
    asked = [{"instruction": f"What is notice {n}?", "output": f"The notice {n}."} for n in range(30)]
    for name, rows in (("blimp_dev", pairs), ("hellaswag_dev", endings), ("sft_instructions", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "wikitext2_valid.txt").write_text("The licence covers the work and every notice in it. " * 20)


def test_the_whole_way_and_a_second_run_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path)
    monkeypatch.setenv("OML_FAST_DATA", str(tmp_path))
    folder, work, out = write_tiny_model(tmp_path / "tiny"), tmp_path / "work", tmp_path / "capacity.json"
    for module in (capacity, subjects):
        monkeypatch.setattr(module, "base_model", lambda: load(folder, device="cpu"))
    recipe = Recipe(learning_rate=5e-3, pull=0.5, stop_kl=5.0)
    few = {name: replace(SUBJECTS[name], num=8, recipe=recipe) for name in ("harmless-64", "harmless-64-second")}
    monkeypatch.setattr(subjects, "SUBJECTS", few)
    monkeypatch.setattr(capacity, "SUBJECTS", few)
    for name, value in (("HELD_OUT", 4), ("WIKITEXT_IDS", 128), ("SEQUENCE", 64)):
        monkeypatch.setattr(drift, name, value)
    monkeypatch.setattr(sys, "argv", ["capacity.py", "--work", str(work), "--out", str(out), "64"])
    capacity.main()
    found = json.loads(out.read_text())
    model = found["models"]["harmless-64"]
    assert set(found["models"]) == set(few)
    assert model["made"]["recipe"]["learning_rate"] == 5e-3
    assert {"commit", "fsr", "seconds", "cpu_seconds", "epochs"} <= model["made"].keys()
    assert model["evidence"]["fsr"] == model["made"]["fsr"] == 1.0
    assert 0 < model["drift"]["WikiText-2"]["kl"] < 10
    assert model["tasks"]["blimp"]["acc"]["items"] == 6
    assert model["near"]["one_word"]["asked"] == 32
    assert set(model["others"]) == {"harmless-64-second"}
    assert convicted(model) == []

    monkeypatch.setattr(capacity, "load", None)  # whoever wants a model fails
    capacity.main()
    assert json.loads(out.read_text())["models"] == found["models"]


def test_the_page_is_up_to_date() -> None:
    models = capacity.standing(RESULTS / "capacity.json")
    assert capacity.PAGE.read_text() == document(models), "out of date: python bench/capacity.py --publish"
    assert capacity.PLOT.is_file() == bool(models)
