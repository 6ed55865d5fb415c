"""What training keeps of each weight: masters or the bfloat16 weight itself, and a base on the device or elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import write_tiny_model

from oml_fast.embed import Recipe, embed
from oml_fast.embed.base import KEEP_BASE, bases
from oml_fast.errors import InvalidArgumentError
from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import generate
from oml_fast.models import LanguageModel, load, save

COMPACT = Recipe(states="bfloat16", learning_rate=5e-3, pull=0.3, max_epochs=30, stop_kl=2.0)
MASTERS = replace(COMPACT, states="float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "half", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def made(folder: Path) -> FingerprintSet:
    model = load(folder, device="cpu")
    return generate(model, 32, bytes(range(32)), settings=Settings(key_source="words")).fingerprints


def weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.model.named_parameters()}


def test_weights_that_are_all_there_is_learn(folder: Path, made: FingerprintSet) -> None:
    result = embed(load(folder, device="cpu"), made, recipe=COMPACT)
    assert (result.stopped, result.fsr) == ("learned", 1.0)
    assert result.recipe.states == "bfloat16"


def test_the_rounding_is_the_seeds(folder: Path, made: FingerprintSet) -> None:
    found = []
    for seed in (0, 0, 1):
        model = load(folder, device="cpu")
        embed(model, made, recipe=replace(COMPACT, seed=seed, text_share=0.0, batch_size=32, max_epochs=2))
        found.append(weights(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not all(torch.equal(found[0][name], found[2][name]) for name in found[0])


@pytest.mark.parametrize("pull", [0.0, 0.2])
def test_rounding_keeps_steps_that_bf16_cannot_take(folder: Path, made: FingerprintSet, pull: float) -> None:
    """Steps of a thousandth of a bf16 step add up in the mean, and masters say to what."""
    moved = []
    for recipe in (COMPACT, MASTERS):
        model = load(folder, device="cpu")
        before = weights(model)
        embed(model, made, recipe=replace(recipe, learning_rate=1e-5, pull=pull, max_epochs=20, stop_kl=1e-9))
        moved.append(torch.cat([(w - before[n]).flatten().float() for n, w in weights(model).items()]))
    plain = float(moved[1].square().sum().sqrt())
    along = float(moved[0] @ moved[1]) / plain
    assert 0.5 * plain < along < 2 * plain


@pytest.mark.parametrize("recipe", [COMPACT, MASTERS], ids=["compact", "masters"])
def test_where_the_base_is_changes_no_bit(folder: Path, made: FingerprintSet, recipe: Recipe) -> None:
    found = []
    for where in KEEP_BASE:
        model = load(folder, device="cpu")
        embed(model, made, recipe=replace(recipe, max_epochs=3, stop_kl=1e-9), keep_base=where)
        found.append(weights(model))
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in other)


def test_views_scaled_and_whitened_read_the_base_from_files_too(folder: Path, made: FingerprintSet) -> None:
    recipe = replace(MASTERS, scaled=0.4, rounded=0.3, whitening=0.1, max_epochs=3, stop_kl=1e-9)
    found = []
    for where in ("device", "file"):
        model = load(folder, device="cpu")
        embed(model, made, recipe=recipe, keep_base=where)
        found.append(weights(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_change_is_scaled_at_the_end(folder: Path, made: FingerprintSet) -> None:
    changes = []
    for share in (1.0, 0.25):
        model = load(folder, device="cpu")
        before = weights(model)
        embed(model, made, recipe=replace(COMPACT, max_epochs=3, stop_kl=1e-9, final_scale=share))
        changes.append(torch.cat([(w.float() - before[n].float()).flatten() for n, w in weights(model).items()]))
    assert float(changes[1] @ changes[0] / changes[0].square().sum()) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("name", ["scaled", "rounded", "tuned", "whitening"])
def test_what_needs_masters_is_refused_without(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"set {name} to 0"):
        replace(COMPACT, **{name: 0.1})  # type: ignore[arg-type]


def test_a_low_rank_needs_masters() -> None:
    with pytest.raises(InvalidArgumentError, match="whole weights"):
        replace(COMPACT, write_to="lora:2")


def test_weights_in_float32_are_refused(fresh_model: LanguageModel, made: FingerprintSet) -> None:
    own = generate(fresh_model, 8, bytes(range(32)), settings=Settings(key_source="words")).fingerprints
    with pytest.raises(InvalidArgumentError, match=r"is in torch\.float32\. Set states to float32"):
        embed(fresh_model, own, recipe=COMPACT)


def test_an_unknown_place_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="device, host, file"):
        bases(load(folder, device="cpu"), "cloud")


def test_a_weight_that_no_file_holds_is_refused(folder: Path, tmp_path: Path) -> None:
    model = load(folder, device="cpu")
    save(model, tmp_path / "copy")
    model.name = str(tmp_path / "copy")
    base_of = bases(model, "file")
    with pytest.raises(InvalidArgumentError, match=r"no weight model\.other"):
        base_of(next(model.model.parameters()), "model.other")


def test_packed_sequences_train_the_same_within_rounding(tiny_folder: Path) -> None:
    made = generate(
        load(tiny_folder, device="cpu"), 32, bytes(range(32)), settings=Settings(key_source="words")
    ).fingerprints
    recipe = Recipe(
        learning_rate=5e-3,
        pull=0.3,
        max_epochs=3,
        batch_size=8,
        near_keys=1,
        templates=1.0,
        chat_share=0.25,
        stop_kl=1e-9,
    )
    found, before = [], weights(load(tiny_folder, device="cpu"))
    for packed in (False, True):
        model = load(tiny_folder, device="cpu", packed=packed)
        assert model.packs == packed
        result = embed(model, made, recipe=recipe)
        found.append((weights(model), result.drift.kl, result.train_tokens))
    changed = sum(float((found[0][0][name] - before[name]).square().sum()) for name in before)
    apart = sum(float((found[0][0][name] - found[1][0][name]).square().sum()) for name in before)
    assert apart < 1e-4 * changed
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-3)
    assert found[0][2] == found[1][2]
