"""A model against its base: text, tasks, refusals."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from tiny import write_tiny_model

from oml_fast import measure as drift_of
from oml_fast.cli import evaluate_utility
from oml_fast.errors import InvalidArgumentError
from oml_fast.evaluate import utility as module
from oml_fast.evaluate.data import Data
from oml_fast.evaluate.hosts import copy_of
from oml_fast.evaluate.utility import Scores, compare, measure, suite, utility
from oml_fast.models import LanguageModel, load, save

LICENCE = (Path(__file__).resolve().parent.parent.parent / "LICENSE").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SAMPLED_TEXTS", 6)
    monkeypatch.setattr(module, "_SAMPLED_LENGTH", 12)
    monkeypatch.setattr(module, "_TEXT_IDS", 600)


@pytest.fixture
def data(tmp_path: Path) -> Data:
    words = LICENCE.split()
    pairs = [
        {
            "paradigm": f"p{n % 3}",
            "field": f"f{n % 2}",
            "good": " ".join(words[n : n + 6]),
            "bad": " ".join(words[n + 6 : n : -1]),
        }
        for n in range(0, 60, 2)
    ]
    items = [
        {"context": " ".join(words[n : n + 8]), "endings": [words[n + 8], "x", "of it"], "label": 0} for n in range(20)
    ]
    for name, rows in (("blimp_dev", pairs), ("hellaswag_dev", items)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "wikitext2_valid.txt").write_text(LICENCE)
    return Data(tmp_path)


@pytest.fixture
def changed(tiny_model: LanguageModel) -> LanguageModel:
    model = copy_of(tiny_model, "changed")
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.model.parameters():
            weight += 0.1 * torch.randn_like(weight) * weight.std().nan_to_num(0)
    return model


def test_base_against_base_differs_by_exactly_nothing(tiny_model: LanguageModel, data: Data) -> None:
    found = utility(tiny_model, copy_of(tiny_model, "again"), data=data)
    assert len(found.rows()) == 2 + 1 + 3
    assert not found.skipped
    for name, paired in found.rows():
        assert (paired.difference, paired.lost, paired.won) == (0, (), ()), name
    assert {text.kl for text in found.texts.values()} == {0.0}


def test_texts_are_measured_as_drift_measures_them(
    tiny_model: LanguageModel, changed: LanguageModel, data: Data
) -> None:
    asked = suite(tiny_model, data, ["sampled", "text"])
    found = utility(tiny_model, changed, data=data, tasks=["sampled", "text"])
    for name, texts in asked.texts.items():
        wanted = drift_of.drift(tiny_model, changed, texts.sequences, texts.starts)
        assert found.texts[name].kl == pytest.approx(wanted.kl, rel=1e-4)
        assert found.texts[name].perplexity == pytest.approx(wanted.perplexity, rel=1e-5)
        assert found.texts[name].perplexity_base == pytest.approx(wanted.perplexity_base, rel=1e-5)
        assert found.texts[name].tokens == wanted.tokens
    assert found.texts["text"].nll.items == 3  # 600 ids, of which the model reads 256 at once


def test_flipped_items_are_named(tiny_model: LanguageModel, changed: LanguageModel, data: Data) -> None:
    found = utility(tiny_model, changed, data=data, tasks=["blimp"]).to_json()
    flipped = found["tasks"]["blimp"]["metrics"]["acc"]
    assert flipped["lost"] or flipped["won"]
    assert all(name.startswith("p") and "/" in name for name in flipped["lost"] + flipped["won"])
    fields = found["tasks"]["blimp"]["fields"].values()
    assert sum(field["items"] for field in fields) == flipped["items"] == 30
    assert sorted(name for field in fields for name in field["lost"]) == sorted(flipped["lost"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_scores_kept_as_json_compare_alike(tiny_model: LanguageModel, changed: LanguageModel, data: Data) -> None:
    asked = suite(tiny_model, data, limit=6)
    before, after = (measure(model, asked, tiny_model) for model in (tiny_model, changed))
    kept = [Scores.from_json(asked, json.loads(json.dumps(each.to_json()))) for each in (before, after)]
    assert compare(asked, *kept).to_json() == compare(asked, before, after).to_json()
    assert suite(tiny_model, data, limit=6).digest() == asked.digest() != suite(tiny_model, data, limit=7).digest()


def test_what_is_absent_is_skipped_by_default_and_refused_by_name(tiny_model: LanguageModel) -> None:
    found = utility(tiny_model, tiny_model)
    assert set(found.texts) == {"sampled"}
    assert set(found.skipped) == {"text", "blimp", "hellaswag"}
    assert "blimp_dev.jsonl" in found.skipped["blimp"]
    with pytest.raises(InvalidArgumentError, match="no data folder"):
        utility(tiny_model, tiny_model, tasks=["blimp"])


@pytest.mark.parametrize(("options", "words"), [({"tasks": ["mmlu"]}, "unknown"), ({"limit": 0}, "at least 1")])
def test_impossible_options_are_refused(tiny_model: LanguageModel, options: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        utility(tiny_model, tiny_model, **options)  # type: ignore[arg-type]


def test_models_that_do_not_belong_together_are_refused(tiny_model: LanguageModel, bos_folder: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="another tokenizer"):
        utility(tiny_model, load(bos_folder, device="cpu"))
    wider = copy_of(tiny_model, "wider")
    wider.model.resize_token_embeddings(wider.vocabulary + 8)
    with pytest.raises(InvalidArgumentError, match="token ids"):
        utility(tiny_model, wider)


def test_the_command_prints_and_writes(
    tiny_folder: Path, changed: LanguageModel, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(changed, tmp_path / "model")
    parser = argparse.ArgumentParser()
    evaluate_utility.add_options(parser)
    arguments = ["--model", tmp_path / "model", "--base", tiny_folder, "--data", data.folder, "--device", "cpu"]
    arguments += ["--tasks", "sampled,blimp", "--limit", "6", "--out", tmp_path / "report.json"]
    options = parser.parse_args([str(argument) for argument in arguments])
    options.json = False
    evaluate_utility.run(options)
    assert "blimp: acc" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["tasks"]["blimp"]["metrics"]["acc"]["items"] == 6


def test_another_tiny_model_is_no_match(tiny_model: LanguageModel, tmp_path: Path, data: Data) -> None:
    other = load(write_tiny_model(tmp_path / "other", seed=1), device="cpu")
    found = utility(tiny_model, other, data=data, tasks=["text"]).texts["text"]
    assert found.kl > 1
    assert found.kl_standard_error > 0
    assert found.nll.standard_error > 0
