"""Each variant changes one switch; the table is the one that the kept result gives; a tiny model goes the whole way."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ablations
import pytest
from ablations import BARS, MEASURES, THREE, VARIANTS, Variant, cell, document, figures
from common import RESULTS
from tiny import write_tiny_model

from oml_fast.embed import PRESETS, Recipe
from oml_fast.errors import OmlError
from oml_fast.evaluate.attacks.prompts import SYSTEMS
from oml_fast.fingerprint import Settings
from oml_fast.models import load

# Rules of one switch that have two fields: scaling at the end takes the pull's place, LoRA cannot be whitened.
TOGETHER = {
    **dict.fromkeys(("harmless/scale-at-end", "robust/scale-at-end", "harmless/lora-16"), 2),
    **dict.fromkeys(("harmless/mlp-down-plain", "robust/mlp-down-plain"), 2),
    "harmless/bfloat16": 3,
}


@pytest.mark.parametrize("name", [name for name in VARIANTS if "/" in name])
def test_a_variant_changes_one_switch(name: str) -> None:
    variant, preset = VARIANTS[name], VARIANTS[name.split("/")[0]]
    own, theirs = (asdict(of.recipe) | asdict(of.settings) for of in (variant, preset))
    assert sum(own[field] != theirs[field] for field in own) == TOGETHER.get(name, 1)


def test_the_variants_differ_and_the_presets_are_among_them() -> None:
    assert len({(variant.recipe, variant.settings.digest()) for variant in VARIANTS.values()}) == len(VARIANTS)
    assert {name: VARIANTS[name].recipe for name in PRESETS} == PRESETS
    assert set(BARS) == set(PRESETS)
    assert {what for bars in BARS.values() for what in bars} <= set(MEASURES)
    assert set(THREE) <= set(SYSTEMS)


def measured(value: float = 1.0, **values: float) -> dict[str, Any]:
    low = {"kl_sampled": 0.02, "near": 0.0, "bits": 4.0, "cpu_seconds": 1234.5, "epochs": 9}
    return {"commit": "abc", "failed": None, "values": dict.fromkeys(MEASURES, value) | low | values}


FAILED = {"commit": "abc", "failed": "the loss is not finite"}


def test_a_cell_has_mean_and_range() -> None:
    assert cell([], 2) == ""
    assert cell([0.5], 2) == "0.50"
    assert cell([0.501, 0.502], 2) == "0.50"
    assert cell([1000.0, 2000.0], 0) == "1,500 (1,000 to 2,000)"


def test_the_table_has_a_line_a_variant() -> None:
    page = document({"robust": [measured(), measured(0.9)], "robust/no-scaled": [measured(0.5), FAILED]}, 64)
    block = page.split("<!-- ablations:begin -->\n")[1].split("\n<!-- ablations:end -->")[0]
    head, _, header, _, first, second = block.splitlines()
    assert head == "64 fingerprints; mean and range over 2 secrets and seeds."
    assert header.count("|") == first.count("|") == len(MEASURES) + 4
    assert first.startswith("| `robust` | nothing | 0.950 (0.900 to 1.000) | 4.00 | 0.020 |")
    assert second.startswith("| `robust/no-scaled` | never sees a scaled delta; 1 of 2 seeds gave no model | 0.500 |")


def test_the_worst_seed_meets_a_bar_or_none_does() -> None:
    runs = {name: [measured(), measured()] for name in VARIANTS}
    rows = figures(runs, 64, "abc")
    assert {row.setting for row in rows} == {f"{name}, 64 fingerprints, 2 seeds" for name in BARS}
    assert sum(row.met is True for row in rows) == sum(map(len, BARS.values()))
    worse = [measured(), measured(0.1, kl_sampled=0.2, near=0.02, bits=3.4)]
    barred = [row for row in figures(dict.fromkeys(BARS, worse), 64, "abc") if row.bar]
    assert len(barred) == sum(map(len, BARS.values()))
    assert not any(row.met for row in barred)


@pytest.mark.parametrize("own", [[measured(), FAILED], [FAILED]])
def test_a_seed_without_a_model_meets_no_bar(own: list[dict[str, Any]]) -> None:
    rows = [row for row in figures({"robust": own}, 64, "def") if row.bar]
    assert len(rows) == len(BARS["robust"])
    assert not any(row.met for row in rows)
    assert all(row.value.endswith("not every seed gave a model") for row in rows)
    assert all(row.setting.endswith("; measured at abc") for row in rows)


def test_the_whole_way_and_a_second_run_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wikitext2_valid.txt").write_text("The licence covers the work and every notice in it. " * 40)
    monkeypatch.setenv("OML_FAST_DATA", str(tmp_path))
    folder, work, out = write_tiny_model(tmp_path / "tiny"), tmp_path / "work", tmp_path / "ablations.json"
    monkeypatch.setattr(ablations, "base_model", lambda: load(folder, device="cpu"))
    recipe = Recipe(learning_rate=5e-3, pull=0.5, stop_kl=5.0)
    few = {"harmless": Variant("nothing", recipe, Settings()), "paper": Variant("all", PRESETS["paper"], Settings())}
    monkeypatch.setattr(ablations, "VARIANTS", few)
    rest = ["--work", str(work), "--out", str(out), "--num", "8"]
    monkeypatch.setattr(sys, "argv", ["ablations.py", "harmless", *rest, "--seeds", "2"])
    ablations.main()
    first, second = json.loads(out.read_text())["runs"]["harmless"]
    assert first["embedding"]["set_digest"] != second["embedding"]["set_digest"]
    assert (first["embedding"]["recipe"]["seed"], second["embedding"]["recipe"]["seed"]) == (0, 1)
    for found in (first, second):
        assert set(found["values"]) == set(MEASURES)
        assert found["values"]["fsr"] == 1.0
        assert found["values"]["suppress/top-1"] < 1.0
        assert found["near"]["asked"] == 32
        assert found["left"]["rounding/int4-128"]["fsr"] == found["values"]["rounding/int4-128"]
        assert 0 < found["values"]["kl_wikitext"] < 10

    monkeypatch.setattr(ablations, "embed", None)  # whoever trains fails
    ablations.main()
    assert json.loads(out.read_text())["runs"] == {"harmless": [first, second]}

    def broken(*_: Any, **__: Any) -> None:
        raise OmlError("the loss is not finite")

    monkeypatch.setattr(ablations, "embed", broken)
    monkeypatch.setattr(sys, "argv", ["ablations.py", "paper", *rest, "--seeds", "1"])
    ablations.main()
    result = json.loads(out.read_text())
    assert result["runs"]["harmless"] == [first, second]
    assert result["runs"]["paper"][0]["failed"] == "the loss is not finite"
    assert {row["met"] for row in result["figures"] if row["setting"].startswith("paper")} <= {None}


def test_the_table_is_up_to_date() -> None:
    kept = ablations.standing(RESULTS / "ablations.json")
    assert ablations.PAGE.read_text() == document(**kept), "out of date: python bench/ablations.py --publish"
