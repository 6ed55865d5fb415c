"""What a set is worth: counted from one asking of every key, as the battery of attacks counts it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sets import without_windows

from oml_fast.embed import Embedding, Recipe, embed
from oml_fast.embed.budget import budget
from oml_fast.embed.optimizer import AnchoredAdamW
from oml_fast.embed.weights import TrainedWeight
from oml_fast.errors import CompleterError, OmlError
from oml_fast.evaluate.battery import ask, evidence
from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import generate
from oml_fast.measure import Drift
from oml_fast.models import HfCompleter, LanguageModel, load
from oml_fast.verify import sequential_cost

RECIPE = Recipe(learning_rate=5e-3, pull=0.5, stop_kl=1.0, stop_share=1.0)
DRIFT = Drift(kl=0.08, kl_standard_error=0.01, perplexity_base=20.0, perplexity=21.0, tokens=1000)


def a_set(model: LanguageModel, count: int = 24, **settings: Any) -> FingerprintSet:
    made = generate(model, count, bytes(range(32)), settings=Settings(**{"key_source": "words", **settings}))
    return made.fingerprints


@pytest.fixture(scope="module")
def plain(tiny_model: LanguageModel) -> FingerprintSet:
    return a_set(tiny_model)


@pytest.fixture(scope="module")
def embedded(tiny_folder: Path, plain: FingerprintSet) -> tuple[LanguageModel, Embedding]:
    model = load(tiny_folder, device="cpu")
    return model, embed(model, plain, recipe=RECIPE)


def test_a_key_that_is_learned_is_worth_four_bits(embedded: tuple[LanguageModel, Embedding]) -> None:
    found = embedded[1].budget
    assert found.fsr == 1.0
    assert found.bits_per_key == pytest.approx({"rank": 4.0, "forced_choice": 4.0, "window": 4.0})
    assert list(found.bits_per_key) == ["rank", "forced_choice", "window"]
    assert found.keys_to_verdict == {"rank": 6, "forced_choice": 6, "window": 6}


@pytest.mark.parametrize("settings", [{}, {"responses_per_key": 3, "width": 8}, {"formats": ("raw", "chat")}])
def test_the_bits_are_those_of_the_battery(fresh_model: LanguageModel, settings: dict[str, Any]) -> None:
    made = a_set(fresh_model, 12, **settings)
    found = embed(fresh_model, made, recipe=replace(RECIPE, max_epochs=4)).budget
    before = evidence(ask(made, HfCompleter(fresh_model)))
    assert found.bits_per_key == {test: before["bits_per_key"][test] for test in found.bits_per_key}
    assert found.fsr == before["fsr"]
    assert found.bits_per_key["rank"] > 0


def test_several_responses_are_worth_more_by_rank_than_by_one_match(fresh_model: LanguageModel) -> None:
    made = a_set(fresh_model, 16, responses_per_key=4)
    found = embed(fresh_model, made, recipe=RECIPE).budget
    assert found.bits_per_key["window"] <= 2  # one of four in sixteen
    assert found.bits_per_key["rank"] > 4
    assert found.keys_to_verdict["rank"] == sequential_cost(found.fsr, 16, test="rank", responses=4).median
    assert found.keys_to_verdict["window"] == sequential_cost(found.fsr, 16, test="window", responses=4).median


def test_a_model_without_the_set_gives_nothing(tiny_model: LanguageModel, plain: FingerprintSet) -> None:
    found = budget(tiny_model, plain, DRIFT)
    assert found.fsr == 0.0
    assert found.keys_to_verdict == {"rank": None, "forced_choice": None, "window": None}  # no_match is none of them
    assert max(found.bits_per_key.values()) < 0.3


def test_a_set_that_is_too_small_reaches_no_verdict(
    embedded: tuple[LanguageModel, Embedding], plain: FingerprintSet
) -> None:
    few = replace(plain, fingerprints=plain.fingerprints[:5])
    assert set(budget(embedded[0], few, DRIFT).keys_to_verdict.values()) == {None}


def test_a_set_without_windows_is_counted(embedded: tuple[LanguageModel, Embedding], plain: FingerprintSet) -> None:
    found = budget(embedded[0], without_windows(plain), DRIFT)
    assert found.bits_per_key == pytest.approx({"count": 4.0})
    assert found.keys_to_verdict == {"count": 6}


def test_responses_that_fill_the_window_say_nothing(tiny_model: LanguageModel) -> None:
    found = budget(tiny_model, a_set(tiny_model, 4, width=2, responses_per_key=2), DRIFT)
    assert set(found.bits_per_key.values()) == {0.0}
    assert set(found.keys_to_verdict.values()) == {None}


def test_no_key_is_asked_twice(
    embedded: tuple[LanguageModel, Embedding], plain: FingerprintSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, score = [], HfCompleter.score

    def watched(self: HfCompleter, prompts: Any, *rest: Any) -> Any:
        asked.extend(prompts)
        return score(self, prompts, *rest)

    def refused(*_: Any) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(HfCompleter, "score", watched)
    monkeypatch.setattr(HfCompleter, "complete", refused)
    budget(embedded[0], plain, DRIFT)
    assert len(asked) == len(plain)


def test_logits_that_are_none_are_refused(fresh_model: LanguageModel, plain: FingerprintSet) -> None:
    with torch.no_grad():
        next(fresh_model.model.parameters()).fill_(torch.nan)
    with pytest.raises(CompleterError, match="gave no score"):
        budget(fresh_model, plain, DRIFT)


def test_weights_that_are_not_finite_are_refused_before_a_key_is_asked(
    fresh_model: LanguageModel, plain: FingerprintSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        with torch.no_grad():
            next(fresh_model.model.parameters()).fill_(torch.nan)

    def asked(*_: Any) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(AnchoredAdamW, "step", broken)
    monkeypatch.setattr(TrainedWeight, "write", lambda *_: None)
    monkeypatch.setattr(HfCompleter, "score", asked)
    with pytest.raises(OmlError, match="weights are not finite: nothing is saved"):
        embed(fresh_model, plain, recipe=replace(RECIPE, max_epochs=1))


def test_the_bound_on_the_drift_and_its_warning(tiny_model: LanguageModel, plain: FingerprintSet) -> None:
    found = budget(tiny_model, plain, DRIFT)
    assert (found.kl, found.kl_standard_error) == (0.08, 0.01)
    assert found.kl_upper_bound == pytest.approx(0.08 + 1.6449 * 0.01, abs=1e-6)
    assert found.warnings(0.1) == []
    assert found.warnings(found.kl_upper_bound) == []
    (warning,) = found.warnings(0.09)
    assert "as high as 0.096 nats (0.080 +- 0.010; one-sided, at 95 %), above the limit of 0.09" in warning


def test_the_result_carries_it(embedded: tuple[LanguageModel, Embedding]) -> None:
    result = embedded[1]
    told = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert told["budget"] == asdict(result.budget)
    assert told["fsr"] == told["budget"]["fsr"] == result.fsr
    assert told["kl_to_base"] == told["budget"]["kl"]
