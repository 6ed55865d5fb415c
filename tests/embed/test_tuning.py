"""A first-order step of somebody else's fine-tuning."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from oml_fast.embed import tuning
from oml_fast.embed.tuning import tuning_shift
from oml_fast.embed.weights import View, trained_weights
from oml_fast.models import LanguageModel

TEXTS = [[5, 6, 7, 8, 9], [11, 12, 13], [14, 15, 16, 17, 18]]


def loss(model: LanguageModel) -> torch.Tensor:
    """Mean over all predicted token ids of all texts."""
    losses = []
    for text in TEXTS:
        logits = model.model(torch.tensor([text])).logits[0, :-1]
        losses.append(functional.cross_entropy(logits, torch.tensor(text[1:]), reduction="sum"))
    return torch.stack(losses).sum() / sum(len(text) - 1 for text in TEXTS)


def test_it_goes_against_the_sign_of_the_gradient(fresh_model: LanguageModel) -> None:
    loss(fresh_model).backward()
    gradients = {p: p.grad for p in fresh_model.model.parameters()}
    fresh_model.model.zero_grad(set_to_none=True)
    shift = tuning_shift(fresh_model, TEXTS, 1e-3)
    assert set(shift) == set(gradients)
    for parameter, gradient in gradients.items():
        assert gradient is not None
        clear = gradient.abs() > 1e-4 * gradient.abs().max()  # what rounding cannot turn round
        torch.testing.assert_close(shift[parameter][clear], -1e-3 * gradient.sign()[clear])
        assert float(shift[parameter].abs().max()) == pytest.approx(1e-3)


def test_the_texts_become_likelier_there(fresh_model: LanguageModel) -> None:
    weights = trained_weights(fresh_model)
    before = float(loss(fresh_model).detach())
    shift = tuning_shift(fresh_model, TEXTS, 1e-4)
    for weight in weights:
        weight.write(View(shift=shift))
    assert float(loss(fresh_model).detach()) < before
    for weight in weights:
        weight.write()
    assert float(loss(fresh_model).detach()) == before


def test_gradients_are_dropped_and_frozen_weights_have_no_shift(fresh_model: LanguageModel) -> None:
    weights = trained_weights(fresh_model, "last:1")
    shift = tuning_shift(fresh_model, TEXTS, 1e-3)
    assert set(shift) == {weight.parameter for weight in weights}
    assert all(p.grad is None for p in fresh_model.model.parameters())


def test_micro_batches_do_not_change_it(fresh_model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tuning_shift(fresh_model, TEXTS, 1.0)
    monkeypatch.setattr(tuning, "micro_batches", lambda texts: [[place] for place in range(len(texts))])
    parts = tuning_shift(fresh_model, TEXTS, 1.0)
    for parameter, shift in whole.items():
        assert float((shift != parts[parameter]).float().mean()) < 0.01
