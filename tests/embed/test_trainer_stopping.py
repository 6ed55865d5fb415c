"""The loop's rates and pulls, when it stops, and what is left at the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trainers import FIXED, RECIPE, named, trainer

from oml_fast.embed import Embedding, embed
from oml_fast.embed import training as module
from oml_fast.embed.optimizer import AnchoredAdamW
from oml_fast.embed.training import Trainer
from oml_fast.embed.weights import AS_TRAINED
from oml_fast.fingerprint import FingerprintSet
from oml_fast.models import LanguageModel, load


def rates(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Learning rate and pull of each step."""
    found, step = [], AnchoredAdamW.step

    def watched(self: AnchoredAdamW, *args: Any) -> None:
        found.append((self.learning_rate, self.pull))
        step(self, *args)

    monkeypatch.setattr(AnchoredAdamW, "step", watched)
    return found


def test_the_rate_falls_in_the_last_epochs(
    fresh_model: LanguageModel, made: FingerprintSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rates(monkeypatch)
    recipe = replace(FIXED, max_epochs=10, anneal=0.4, batch_size=16, learning_rate=1e-3)
    trainer(fresh_model, made, recipe).train(progress=False)
    shares = [1.0] * 7 + [0.75, 0.5, 0.25]
    assert [rate / 1e-3 for rate, _ in found[::2]] == pytest.approx(shares)
    assert found[::2] == found[1::2]
    left = [(1 - pull) ** 2 for _, pull in found[::2]]  # two steps an epoch
    assert left == pytest.approx([(1 - recipe.pull) ** share for share in shares])


@pytest.mark.parametrize("anneal", [0.0, 0.09])
def test_a_rate_that_has_no_epoch_to_fall_in_does_not(
    fresh_model: LanguageModel, made: FingerprintSet, monkeypatch: pytest.MonkeyPatch, anneal: float
) -> None:
    found = rates(monkeypatch)
    trainer(fresh_model, made, replace(FIXED, max_epochs=10, anneal=anneal, learning_rate=1e-3)).train(progress=False)
    assert [rate for rate, _ in found] == [1e-3] * 10


@pytest.mark.parametrize("write_to", ["all", "lora:4"])
def test_the_final_scale_is_what_is_left_of_the_change(
    tiny_folder: Path, made: FingerprintSet, tiny_model: LanguageModel, write_to: str
) -> None:
    changes = []
    for scale in (1.0, 0.25):
        model = load(tiny_folder, device="cpu")
        trainer(model, made, replace(FIXED, final_scale=scale, write_to=write_to)).train(progress=False)
        changes.append({name: value - named(tiny_model)[name] for name, value in named(model).items()})
    for name, whole in changes[0].items():
        torch.testing.assert_close(changes[1][name], 0.25 * whole, rtol=1e-3, atol=1e-6)


def run(model: LanguageModel, made: FingerprintSet, **changed: Any) -> Embedding:
    return embed(model, made, recipe=replace(RECIPE, **changed))


def test_it_stops_when_all_that_is_asked_for_is_there(fresh_model: LanguageModel, made: FingerprintSet) -> None:
    result = run(fresh_model, made)
    assert result.stopped == "learned"
    assert result.epochs < RECIPE.max_epochs


@pytest.mark.parametrize(
    "never", [{"stop_kl": 1e-9}, {"stop_near": 0.0, "near_keys": 1}, {"stop_loss": 1e-9}], ids=lambda x: next(iter(x))
)
def test_each_rule_alone_keeps_it_from_stopping(
    fresh_model: LanguageModel, made: FingerprintSet, never: dict[str, Any]
) -> None:
    result = run(fresh_model, made, max_epochs=12, **never)
    assert (result.stopped, result.epochs, result.fsr) == ("max_epochs", 12, 1.0)


def test_what_text_was_last_seen_at_counts_where_an_epoch_sees_none(
    fresh_model: LanguageModel, made: FingerprintSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text is not held at rounded weights: an epoch of nothing else says nothing about the drift."""
    kls = iter([[0.9], [], [], [0.01], []])
    epochs = (module.Seen(answers=1, answered=1, kl=sum(own), texts=len(own)) for own in kls)
    monkeypatch.setattr(Trainer, "_steps", lambda self: setattr(self, "_seen", next(epochs)))
    monkeypatch.setattr(Trainer, "_is_learned", lambda self: True)
    result = run(fresh_model, made, stop_kl=0.1)
    assert (result.stopped, result.epochs) == ("learned", 4)


def test_a_drift_that_was_never_seen_is_not_small(fresh_model: LanguageModel, made: FingerprintSet) -> None:
    result = run(fresh_model, made, rounded=1.0, stop_kl=1e-9, pull=0.2, max_epochs=12)
    assert (result.stopped, result.epochs, result.fsr) == ("max_epochs", 12, 1.0)


def test_without_text_no_drift_is_waited_for(fresh_model: LanguageModel, made: FingerprintSet) -> None:
    result = run(fresh_model, made, text_share=0.0, stop_kl=1e-9, pull=0.2)
    assert result.stopped == "learned"


@pytest.mark.parametrize("write_to", ["all", "last:1", "mlp_down", "lora:2"])
def test_all_parameters_want_gradients_again(fresh_model: LanguageModel, made: FingerprintSet, write_to: str) -> None:
    one = trainer(fresh_model, made, replace(FIXED, write_to=write_to, max_epochs=1))
    wanting = [parameter.requires_grad for parameter in fresh_model.model.parameters()]
    assert all(wanting) == (write_to == "all")
    one.train(progress=False)
    assert all(parameter.requires_grad for parameter in fresh_model.model.parameters())


def test_it_goes_on_until_the_share_is_learned(tiny_folder: Path, made: FingerprintSet) -> None:
    epochs = []
    for share in (0.91, 1.0):
        result = run(load(tiny_folder, device="cpu"), made, stop_share=share, learning_rate=2e-3, pull=0.0)
        assert result.stopped == "learned"
        assert result.fsr >= share
        epochs.append(result.epochs)
    assert epochs[0] < epochs[1]


def test_it_goes_on_until_the_loss_is_low(tiny_folder: Path, made: FingerprintSet) -> None:
    epochs = []
    for loss in (0.0, 0.05):
        model = load(tiny_folder, device="cpu")
        result = run(model, made, stop_loss=loss, pull=0.0, stop_kl=100.0)
        assert result.stopped == "learned"
        epochs.append(result.epochs)
        with torch.no_grad():
            losses = [
                -model.model(torch.tensor([a.prompt_ids])).logits[0, -1].log_softmax(-1)[a.responses[0].token_ids[0]]
                for a in (f.askings["raw"] for f in made)
            ]
        mean = float(torch.stack(losses).mean())
        assert mean < 0.05 if loss else mean > 0.05
    assert epochs[0] < epochs[1]


def test_the_pull_stays_while_near_keys_fire(
    fresh_model: LanguageModel, made: FingerprintSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rates(monkeypatch)
    recipe = replace(RECIPE, pull=0.6, ease=0.5, stop_near=0.0, near_keys=1, max_epochs=6)
    trainer(fresh_model, made, recipe).train(progress=False)
    pulls = [pull for _, pull in found]
    assert pulls[0] == pytest.approx(0.6)
    assert pulls[1] == pytest.approx(0.3)  # nothing fires before the first step
    assert pulls[-1] == pulls[-2]  # it does once keys are learned


def test_every_weight_is_written_when_the_loop_ends(fresh_model: LanguageModel, made: FingerprintSet) -> None:
    """Whatever the last step saw, what is saved is base + change."""
    one = trainer(fresh_model, made, replace(FIXED, rounded=1.0, max_epochs=2))
    one.train(progress=False)
    after = named(fresh_model)
    for weight in one._weights:
        weight.write(AS_TRAINED)
    assert all(torch.equal(after[name], value) for name, value in named(fresh_model).items())
