"""A step of the loop: the weights it sees, what holds it, and the parts of its gradient."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from trainers import FIXED, trainer

from oml_fast.embed import training as module
from oml_fast.embed.objective import CrossEntropy, response_loss
from oml_fast.embed.optimizer import AnchoredAdamW
from oml_fast.embed.training import Trainer
from oml_fast.embed.weights import AS_TRAINED, View, rounded
from oml_fast.evaluate.attacks.rounding import int4
from oml_fast.fingerprint import FingerprintSet
from oml_fast.measure import States
from oml_fast.models import LanguageModel


def written(monkeypatch: pytest.MonkeyPatch) -> list[View]:
    """The views in which all weights are seen, in order."""
    views: list[View] = []
    write = Trainer._write

    def watched(self: Trainer, view: View) -> None:
        views.append(view)
        write(self, view)

    monkeypatch.setattr(Trainer, "_write", watched)
    return views


def test_views_are_drawn_as_often_as_asked(
    fresh_model: LanguageModel, made: FingerprintSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = written(monkeypatch)
    recipe = replace(FIXED, scaled=0.3, scaled_from=0.6, rounded=0.2, tuned=0.1, batch_size=2, max_epochs=8)
    run = trainer(fresh_model, made, recipe)
    run.train(progress=False)
    assert run.steps == 8 * 16
    assert views.pop() is AS_TRAINED  # what is left at the end
    kinds = Counter(
        "scaled" if view.share < 1 else "rounded" if view.bits else "tuned" if view.shift else "" for view in views
    )
    for kind, share in (("scaled", 0.3), ("rounded", 0.2), ("tuned", 0.1)):
        error = (share * (1 - share) / run.steps) ** 0.5
        assert abs(kinds[kind] / run.steps - share) < 4 * error
    assert kinds[""] == 0
    scaled = [view.share for view in views if view.share < 1]
    assert 0.6 <= min(scaled) < 0.7 < 0.9 < max(scaled) <= 1
    assert {(view.bits, view.group) for view in views if view.bits} == {(4, 32), (4, 128), (8, 0)}


def test_without_views_the_weights_are_written_once_more_at_the_end(
    fresh_model: LanguageModel, made: FingerprintSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = written(monkeypatch)
    trainer(fresh_model, made, FIXED).train(progress=False)
    assert views == [AS_TRAINED]


@pytest.mark.parametrize(
    ("changed", "seen"),
    [
        ({"scaled": 1.0, "scaled_from": 0.5}, "part of the change"),
        ({"rounded": 1.0}, "on a grid"),
        ({"tuned": 1.0, "tuned_by": 0.01}, "moved by as much"),
    ],
)
def test_answers_are_given_by_the_weights_as_they_are_seen(
    fresh_model: LanguageModel,
    tiny_model: LanguageModel,
    made: FingerprintSet,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    seen: str,
) -> None:
    parameter = fresh_model.model.model.layers[0].mlp.up_proj.weight
    base = tiny_model.model.model.layers[0].mlp.up_proj.weight.detach()
    read, kept = [], []

    def watched(*args: Any) -> Any:
        read.append(parameter.detach().clone())
        return response_loss(*args)

    step = AnchoredAdamW.step

    def stepped(self: AnchoredAdamW, *args: Any) -> None:
        step(self, *args)
        kept.append(parameter.detach().clone())

    monkeypatch.setattr(module, "response_loss", watched)
    monkeypatch.setattr(AnchoredAdamW, "step", stepped)
    trainer(fresh_model, made, replace(FIXED, max_epochs=3, **changed)).train(progress=False)
    whole, viewed = kept[1], read[-1]  # after two steps, and as seen in the third
    per_step = len(read) // 3
    assert all(torch.equal(other, viewed) for other in read[-per_step:])
    if seen == "part of the change":
        share = (viewed - base).norm() / (whole - base).norm()
        assert 0.5 <= float(share) < 1
        torch.testing.assert_close(viewed, torch.lerp(base, whole, share), rtol=1e-3, atol=1e-5)
    elif seen == "on a grid":
        grids = [int4(whole, 32), int4(whole, 128), rounded(whole, 8)]
        assert any(torch.equal(viewed, grid) for grid in grids)
        assert not torch.equal(viewed, whole)
    else:
        torch.testing.assert_close((viewed - whole).abs(), torch.full_like(whole, 0.01), rtol=1e-3, atol=1e-6)


def test_text_is_not_held_at_rounded_weights(
    fresh_model: LanguageModel, made: FingerprintSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    text_kl = module.text_kl
    monkeypatch.setattr(module, "text_kl", lambda *args: calls.append(1) or text_kl(*args))
    trainer(fresh_model, made, replace(FIXED, rounded=1.0)).train(progress=False)
    assert not calls
    trainer(fresh_model, made, FIXED).train(progress=False)
    assert len(calls) >= 4


def test_chats_are_held_from_where_their_answers_begin(
    fresh_model: LanguageModel, made: FingerprintSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[tuple[int, int, int]] = []
    text_kl = module.text_kl

    def watched(model: LanguageModel, texts: Any, base: States, starts: list[int]) -> torch.Tensor:
        held.append((len(texts), len(texts[0]), starts[0]))
        assert len(set(starts)) == 1
        return text_kl(model, texts, base, starts)

    monkeypatch.setattr(module, "text_kl", watched)
    recipe = replace(FIXED, chat_share=0.5, text_share=0.0, max_epochs=2)
    run = trainer(fresh_model, made, recipe)
    run.train(progress=False)
    (length,) = {len(chat.sequence) for chat in run._material.chats.items}
    assert held == [(len(made) // 2, length, length - 8)] * 2


def move(run: Trainer, size: float) -> None:
    """Where the model is its base, KL and its gradient are zero: so all weights change a little, or go back (0)."""
    for weight in run._weights:
        noise = torch.randn(weight.parameter.shape, generator=torch.Generator().manual_seed(3))
        weight.change.values[0].data.copy_(size * noise)
        weight.write()


def test_the_gradient_of_a_step_is_that_of_its_parts(
    fresh_model: LanguageModel, made: FingerprintSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of means over keys, over near keys times their number for each key, and over text, each with its weight."""
    head = fresh_model.head()[0]
    taken: list[torch.Tensor] = []

    def take() -> torch.Tensor:
        assert head.grad is not None
        found = head.grad.clone()
        fresh_model.model.zero_grad(set_to_none=True)
        return found

    monkeypatch.setattr(AnchoredAdamW, "step", lambda self: taken.append(take()))

    def gradient(near_weight: float, text_weight: float) -> torch.Tensor:
        recipe = replace(FIXED, max_epochs=1, near_keys=2, near_weight=near_weight, text_weight=text_weight)
        one = trainer(fresh_model, made, recipe)
        move(one, 0.02)
        one.train(progress=False)
        move(one, 0)
        return taken[-1]

    nothing = 1e-12  # not zero: what is drawn stays the same
    keys = gradient(nothing, nothing)
    near, text = gradient(1.4, nothing) - keys, gradient(nothing, 0.6) - keys
    assert near.abs().max() > 1e-5
    assert text.abs().max() > 1e-5
    expected = keys + near / 2 + text / 2
    torch.testing.assert_close(gradient(0.7, 0.3), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    one = trainer(fresh_model, made, FIXED)
    move(one, 0.02)
    for example in one._material.keys.items:
        (response_loss(fresh_model, [example], CrossEntropy())[0].sum() / len(made)).backward()
    torch.testing.assert_close(take(), keys, rtol=1e-3, atol=1e-4 * float(keys.abs().max()))
