"""What the loop learns, with each switch and each preset; and the same call makes the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import CONFIGURATIONS, random_model
from tiny import write_tiny_model
from trainers import FIXED, RECIPE, named, trainer

from oml_fast.embed import PRESETS, Recipe, embed
from oml_fast.errors import InvalidArgumentError
from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import generate
from oml_fast.generate.near_keys import KINDS, NearKeys
from oml_fast.generate.vocabulary import Vocabulary
from oml_fast.models import HfCompleter, LanguageModel, load


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
