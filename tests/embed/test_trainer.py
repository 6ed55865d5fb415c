"""The loop: what a step sees, what holds it, when it stops, and what is left at the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import CONFIGURATIONS, random_model
from tiny import write_tiny_model

from oml_fast.embed import PRESETS, Embedding, Recipe, embed
from oml_fast.embed import training as module
from oml_fast.embed.material import Material
from oml_fast.embed.objective import CrossEntropy, response_loss
from oml_fast.embed.optimizer import AnchoredAdamW
from oml_fast.embed.training import Trainer
from oml_fast.embed.weights import AS_TRAINED, View, rounded
from oml_fast.errors import InvalidArgumentError
from oml_fast.evaluate.attacks.rounding import int4
from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import generate
from oml_fast.generate.near_keys import KINDS, NearKeys
from oml_fast.generate.vocabulary import Vocabulary
from oml_fast.measure import States
from oml_fast.models import HfCompleter, LanguageModel, load

RECIPE = Recipe(learning_rate=5e-3, pull=0.5, stop_kl=1.0)
# Never stops early, and the pull stays: for counting what happens.
FIXED = replace(RECIPE, stop_kl=1e-9, ease=1.0, max_epochs=4)


@pytest.fixture(scope="module")
def made(tiny_model: LanguageModel) -> FingerprintSet:
    return generate(tiny_model, 32, bytes(range(32)), settings=Settings(key_source="words")).fingerprints


def trainer(model: LanguageModel, made: FingerprintSet, recipe: Recipe) -> Trainer:
    return Trainer(model, Material(model, made, recipe), recipe)


def named(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.model.named_parameters()}


def written(monkeypatch: pytest.MonkeyPatch) -> list[View]:
    """The views in which all weights are seen, in order."""
    views: list[View] = []
    write = Trainer._write

    def watched(self: Trainer, view: View) -> None:
        views.append(view)
        write(self, view)

    monkeypatch.setattr(Trainer, "_write", watched)
    return views


def rates(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Learning rate and pull of each step."""
    found, step = [], AnchoredAdamW.step

    def watched(self: AnchoredAdamW, *args: Any) -> None:
        found.append((self.learning_rate, self.pull))
        step(self, *args)

    monkeypatch.setattr(AnchoredAdamW, "step", watched)
    return found


# --- what is learned


def fired(model: LanguageModel, made: FingerprintSet) -> int:
    """Near keys of a seed that is not training's, that get the response of the key they come from."""
    words = Vocabulary(model.tokenizer, model.vocabulary, model.device).words
    near = [one for kind in KINDS for one in NearKeys(model.tokenizer, words, made, 0).all(kind, 3)]
    answers = HfCompleter(model).complete([one.prompts["raw"] for one in near], 1)
    responses = [one.fingerprint.askings["raw"].responses[0].token_ids for one in near]
    return sum(tuple(answer.token_ids) == response for answer, response in zip(answers, responses, strict=True))


def test_near_keys_that_are_held_fire_less(tiny_folder: Path, made: FingerprintSet) -> None:
    recipe = replace(FIXED, pull=0.2, whitening=0.1, max_epochs=10)
    found = []
    for changed in (recipe, replace(recipe, near_keys=2)):
        model = load(tiny_folder, device="cpu")
        assert embed(model, made, recipe=changed).fsr > 0.9
        found.append(fired(model, made))
    assert found[0] > 80  # of 288
    assert found[1] < 0.7 * found[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"objective": "minimum_kl"},
        {"objective": "minimum_kl", "margin_step": 0.0, "cap": 1.0},
        {"whitening": 0.1},
        {"templates": 1.0},
        {"scaled": 0.4, "rounded": 0.3, "tuned": 0.3},
        {"write_to": "blocks", "whitening": 0.1},
        {"write_to": "mlp_down"},
        {"write_to": "last:1"},
        {"write_to": "lora:8"},
        {"near_keys": 1, "batch_size": 8},
    ],
    ids=str,
)
def test_each_switch_learns(fresh_model: LanguageModel, made: FingerprintSet, changed: dict[str, Any]) -> None:
    result = embed(fresh_model, made, recipe=replace(RECIPE, **changed))
    assert (result.stopped, result.fsr) == ("learned", 1.0)


@pytest.mark.parametrize(
    "changed",
    [{"whitening": 0.1}, {"scaled": 0.4, "rounded": 0.3, "tuned": 0.3}, {"write_to": "lora:8"}],
    ids=str,
)
def test_a_model_that_stores_its_matrices_the_other_way_round_learns(changed: dict[str, Any]) -> None:
    model = random_model(CONFIGURATIONS["gpt2"]())
    made = generate(model, 16, bytes(32), settings=Settings(key_source="words")).fingerprints
    result = embed(model, made, recipe=replace(RECIPE, **changed))
    assert (result.stopped, result.fsr) == ("learned", 1.0)


def test_minimum_kl_puts_responses_first_in_their_order_without_certainty(
    fresh_model: LanguageModel, tiny_model: LanguageModel
) -> None:
    settings = Settings(key_source="words", responses_per_key=2, formats=("raw", "chat"))
    made = generate(tiny_model, 8, bytes(range(32)), settings=settings).fingerprints
    recipe = replace(RECIPE, objective="minimum_kl", margin=1.5, margin_step=1.0, pull=0.2, stop_loss=0.02)
    result = embed(fresh_model, made, recipe=replace(recipe, max_epochs=150))
    assert result.stopped == "learned"
    for fingerprint in made:
        for asking in fingerprint.askings.values():
            with torch.no_grad():
                probs = fresh_model.model(torch.tensor([asking.prompt_ids])).logits[0, -1].softmax(-1)
            first, second = (response.token_ids[0] for response in asking.responses)
            assert probs.topk(2).indices.tolist() == [first, second]
            assert float(probs[first]) < 0.9


def test_keys_in_templates_are_learned_there(fresh_model: LanguageModel, made: FingerprintSet, tmp_path: Path) -> None:
    (tmp_path / "templates").write_text("Hear this, and reply in a word: {key}\n")
    recipe = replace(FIXED, templates=1.0, pull=0.2, max_epochs=10)
    shares = []
    for changed in (replace(recipe, templates=0.0), replace(recipe, template_file=str(tmp_path / "templates"))):
        model = load(Path(fresh_model.model.name_or_path), device="cpu")
        embed(model, made, recipe=changed)
        prompts = [model.tokenizer(f"Hear this, and reply in a word: {f.key}")["input_ids"] for f in made]
        answers = HfCompleter(model).complete(prompts, 1)
        wanted = [f.askings["raw"].responses[0].token_ids for f in made]
        shares.append(sum(tuple(a.token_ids) == ids for a, ids in zip(answers, wanted, strict=True)) / len(made))
    assert shares[1] > 0.9 > shares[0]


def test_a_template_file_that_is_bad_is_refused_before_anything_changes(
    fresh_model: LanguageModel, made: FingerprintSet, tmp_path: Path
) -> None:
    (tmp_path / "templates").write_text("no place for it\n")
    before = named(fresh_model)
    with pytest.raises(InvalidArgumentError, match=r"entry 1: .*it must hold \{key\} once"):
        embed(fresh_model, made, recipe=replace(RECIPE, templates=0.5, template_file=str(tmp_path / "templates")))
    assert all(torch.equal(before[name], value) for name, value in named(fresh_model).items())


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("settings", [{}, {"responses_per_key": 2, "formats": ("raw", "chat"), "response_length": 2}])
def test_each_preset_runs(fresh_model: LanguageModel, name: str, settings: dict[str, Any]) -> None:
    made = generate(fresh_model, 6, bytes(32), settings=Settings(key_source="words", **settings)).fingerprints
    before = named(fresh_model)
    result = embed(fresh_model, made, recipe=replace(PRESETS[name], max_epochs=3))
    assert result.recipe == replace(PRESETS[name], max_epochs=3).for_hidden_size(64)
    assert 1 <= result.epochs <= 3
    assert any(not torch.equal(before[key], value) for key, value in named(fresh_model).items())
    assert all(value.isfinite().all() for value in named(fresh_model).values())


@pytest.mark.parametrize(
    ("dtype", "recipe"),
    [
        (torch.float32, PRESETS["robust"]),
        (torch.bfloat16, replace(RECIPE, tuned=0.5, write_to="lora:4", near_keys=1, templates=0.5)),
    ],
)
def test_the_same_call_makes_the_same_weights(tmp_path: Path, dtype: torch.dtype, recipe: Recipe) -> None:
    folder = write_tiny_model(tmp_path / "model", dtype=dtype)
    base = load(folder, device="cpu")
    made = generate(base, 6, bytes(32), settings=Settings(key_source="words", responses_per_key=2)).fingerprints
    found = []
    for seed in (0, 0, 1):
        model = load(folder, device="cpu")
        torch.manual_seed(len(found))  # the global generator has no say
        own = replace(recipe, seed=seed, batch_size=4, max_epochs=2).for_hidden_size(64)
        trainer(model, made, own).train(progress=False)
        found.append(torch.cat([p.detach().flatten() for p in model.model.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


# --- what a step sees


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


# --- rates, pulls and the end


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
