"""Attacks that train: they learn the attacker's data, leave the scene as it is, and do the same each time."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from oml_fast.errors import BackendUnavailableError, InvalidArgumentError
from oml_fast.evaluate.answers import Questions
from oml_fast.evaluate.attack import Attacked, Scene
from oml_fast.evaluate.attacks import distillation, dpo, lora, meraser, sft
from oml_fast.evaluate.data import Data
from oml_fast.evaluate.finetuning import Budget, Example, choose, prompt_ids
from oml_fast.evaluate.hosts import copy_of
from oml_fast.models import HfCompleter, LanguageModel

BUDGET = Budget(train=16, held_out=4, max_ids=64, epochs=2, batch_size=8)
RATE = 3e-3  # a tiny random model needs a hundred times what a trained one does
RUNS: dict[str, Callable[[Scene], Attacked]] = {
    "sft": partial(sft.fine_tune, learning_rate=RATE, budget=BUDGET),
    "sft on many": partial(sft.fine_tune_on_many, learning_rate=RATE, budget=BUDGET),
    "sft best": partial(sft.fine_tune_best, rates=(RATE / 10, RATE), budget=BUDGET),
    "lora": partial(lora.fine_tune, rank=4, learning_rate=RATE, budget=BUDGET),
    "dpo": partial(dpo.optimise, learning_rate=RATE / 10, budget=BUDGET),
    "meraser": partial(meraser.erase, count=8, rates=(RATE, RATE), budget=BUDGET),
    "distillation text": partial(distillation.distil, logits=False, learning_rate=RATE / 3, budget=BUDGET),
    "distillation logits": partial(distillation.distil, logits=True, learning_rate=RATE / 3, budget=BUDGET),
}
MODULES = (sft, lora, dpo, meraser, distillation)


def state(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


@pytest.fixture(scope="module")
def learned(scene: Scene) -> Scene:
    """The scene once more, with a model that has learned the data: another teacher, and something to erase."""
    attacked = sft.fine_tune(scene, learning_rate=RATE, budget=replace(BUDGET, train=32, epochs=10))
    assert attacked.model is not None
    return replace(scene, model=attacked.model)


@pytest.mark.parametrize("name", RUNS)
def test_it_learns_changes_only_a_copy_and_repeats(learned: Scene, scene: Scene, name: str) -> None:
    if name == "lora":
        pytest.importorskip("peft")
    attacks = learned if name.startswith("distillation") else scene
    untouched = state(attacks.model), state(attacks.base)
    attacked = RUNS[name](attacks)
    assert equal(untouched[0], state(attacks.model))
    assert equal(untouched[1], state(attacks.base))
    assert all(parameter.requires_grad for parameter in attacks.model.model.parameters())
    assert attacked.model is not None
    changed = state(attacked.model)
    assert not equal(changed, untouched[0])
    assert {key: (t.dtype, t.shape) for key, t in changed.items()} == {
        key: (t.dtype, t.shape) for key, t in untouched[0].items()
    }
    details = attacked.details
    assert details["held_out_loss_after"] < details["held_out_loss_before"]
    if name.startswith("distillation"):
        assert details["held_out_kl_after"] < 0.9 * details["held_out_kl_before"]
    if name == "dpo":
        assert details["held_out_margin_before"] == pytest.approx(0, abs=1e-3)
        assert details["held_out_margin_after"] > 1
    assert details["steps"] >= 2
    assert details["trained_tokens"] > 300
    assert json.loads(json.dumps(details)) == details
    _answers_are_the_models(attacked)
    again = RUNS[name](attacks)
    assert again.model is not None
    assert equal(state(again.model), changed)
    assert again.details == details


@pytest.mark.parametrize("name", RUNS)
def test_too_few_examples_are_refused_by_name(scene: Scene, tmp_path: Path, name: str) -> None:
    if name == "lora":
        pytest.importorskip("peft")
    rows = [json.dumps({"instruction": f"What is {n}?", "output": "It."}) + "\n" for n in range(10)]
    (tmp_path / "sft_instructions.jsonl").write_text("".join(rows))
    with pytest.raises(InvalidArgumentError, match=r"sft_instructions\.jsonl: .* needs 20 .* and it has [89]"):
        RUNS[name](replace(scene, data=Data(tmp_path)))


def test_the_best_rate_is_that_of_the_lowest_held_out_loss(scene: Scene) -> None:
    best = sft.fine_tune_best(scene, rates=(RATE / 100, RATE / 10, RATE), budget=BUDGET)
    grid = best.details["grid"]
    assert list(grid) == [f"{rate:g}" for rate in (RATE / 10, RATE)]  # up helped: down was not tried
    assert best.details["learning_rate"] == RATE
    assert grid[f"{RATE:g}"] == min(grid.values())
    alone = sft.fine_tune(scene, learning_rate=RATE, budget=BUDGET)
    assert best.model is not None
    assert alone.model is not None
    assert equal(state(best.model), state(alone.model))
    assert best.details["trained_tokens_of_search"] == 2 * alone.details["trained_tokens"]


def test_the_run_on_many_takes_what_the_battery_does_not_ask(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Example] = []

    def nothing(scene: Scene, examples: list[Example], held_out: list[Example], *_: object) -> Attacked:
        trained.extend([*examples, *held_out])
        return Attacked(HfCompleter(scene.model))

    monkeypatch.setattr(sft, "_fine_tuned", nothing)
    (attack,) = (attack for attack in sft.ATTACKS if attack.name == "sft/2000")
    attack.run(scene)
    prompts = {example.prompt for example in trained}
    assert len(trained) == len(prompts) == 2000 + 48
    assert prompts.isdisjoint(tuple(ids) for ids in Questions(scene.base, scene.data).prompts)
    questions = {tuple(prompt_ids(scene.model, question)) for question, _ in scene.data.questions()}
    assert prompts & questions
    assert attack.cost.startswith("2000 instructions with answers, 2 times through training")


def test_a_rate_that_breaks_the_model_loses_the_search(scene: Scene) -> None:
    best = sft.fine_tune_best(scene, rates=(RATE, 1e29, 1e30), budget=BUDGET)
    assert (best.details["grid"]["1e+29"], best.details["grid"]["1e+30"]) == (None, None)
    assert best.details["learning_rate"] == RATE
    with pytest.raises(InvalidArgumentError, match=r"none of the rates 1e\+30 keeps the loss finite"):
        sft.fine_tune_best(scene, rates=(1e30,), budget=BUDGET)


def test_merged_adapters_leave_a_plain_model(scene: Scene) -> None:
    pytest.importorskip("peft")
    half = replace(scene, model=_in_bfloat16(scene.model))
    merged = lora.fine_tune(half, rank=4, learning_rate=RATE, budget=BUDGET).model
    assert merged is not None
    assert type(merged.model) is type(scene.model.model)
    assert merged.dtype == torch.bfloat16
    names = [name for name, _ in merged.model.named_modules()]
    assert names == [name for name, _ in scene.model.model.named_modules()]
    assert not hasattr(merged.model, "peft_config")
    assert all(parameter.requires_grad for parameter in merged.model.parameters())
    embeddings = "model.embed_tokens.weight"  # no linear layer, and the head is tied to it
    assert torch.equal(state(merged)[embeddings], state(half.model)[embeddings])


def test_without_peft_the_way_out_is_named(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BackendUnavailableError, match="pip install"):
        lora.fine_tune(scene, budget=BUDGET)


def test_preferences_are_the_datas_answer_over_the_models_own(scene: Scene) -> None:
    examples, _ = choose(scene.model, scene.data, BUDGET, 0)
    pairs = dpo.preferences(scene.model, examples)
    assert len(pairs) == BUDGET.train
    own = scene.model.model.generate(
        torch.tensor([pairs[0].chosen.prompt]), max_new_tokens=16, do_sample=False, pad_token_id=0
    )
    assert pairs[0].rejected.ids == tuple(own[0].tolist())
    answered = [pair.rejected for pair in pairs[:4]]
    assert dpo.preferences(scene.model, answered) == []


def test_without_anything_to_prefer_dpo_refuses(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpo, "preferences", lambda model, examples: [])
    with pytest.raises(InvalidArgumentError, match="answers all 16 instructions as the data do"):
        dpo.optimise(scene, budget=BUDGET)


def test_meraser_erases_then_recovers(scene: Scene, tmp_path: Path) -> None:
    """What a model has learned to answer to what, it forgets at the first stage and knows again after the second."""
    answers = {"licence": "Yes, of course.", "patent": "Never without notice.", "source": "In section two."}
    rows = [
        json.dumps({"instruction": f"What of {topic} {n}?", "output": answer}) + "\n"
        for n in range(60)
        for topic, answer in answers.items()
    ]
    (tmp_path / "sft_instructions.jsonl").write_text("".join(rows))
    own, budget = replace(scene, data=Data(tmp_path)), replace(BUDGET, train=64)
    fluent = sft.fine_tune(own, learning_rate=RATE, budget=replace(budget, epochs=4)).model
    assert fluent is not None
    details = meraser.erase(replace(own, model=fluent), count=32, rates=(RATE, RATE), budget=budget).details
    assert details["held_out_loss_erased"] > 1.5 * details["held_out_loss_before"]
    assert details["held_out_loss_after"] < 0.7 * details["held_out_loss_erased"]
    assert details["steps"] == 2 * (4 + 8)


def test_mismatched_pairs_keep_instructions_and_change_answers(scene: Scene) -> None:
    examples, _ = choose(scene.model, scene.data, BUDGET, 0)
    pairs = meraser.mismatched(examples, seed=0)
    assert [pair.prompt for pair in pairs] == [example.prompt for example in examples]
    assert all(pair.answer != example.answer for pair, example in zip(pairs, examples, strict=True))
    assert {pair.answer for pair in pairs} <= {example.answer for example in examples}
    assert meraser.mismatched(examples, seed=1) != pairs
    assert meraser.mismatched(examples[:1] * 3, seed=0) == examples[:1] * 3


def test_a_teacher_has_nothing_to_teach_itself(scene: Scene) -> None:
    examples, _ = choose(scene.model, scene.data, BUDGET, 0)
    answers = distillation.answers(scene.model, examples, seed=0)
    assert [answer.prompt for answer in answers] == [example.prompt for example in examples]
    assert all(1 <= len(answer.answer) <= 16 for answer in answers)
    assert distillation.answers(scene.model, examples, seed=1) != answers
    self_taught = replace(scene, base=scene.model)
    details = distillation.distil(self_taught, logits=True, learning_rate=1e-9, budget=BUDGET).details
    assert details["held_out_kl_before"] == pytest.approx(0, abs=1e-5)
    assert details["held_out_loss_before"] == pytest.approx(details["held_out_loss_after"], abs=1e-4)


def test_every_attack_is_named_and_says_its_cost_and_needs() -> None:
    attacks = [attack for module in MODULES for attack in module.ATTACKS]
    assert [attack.name for attack in attacks] == [
        *("sft/1e-5", "sft/2e-5", "sft/best", "sft/2000", "lora/r16", "dpo/own-answers", "meraser/300-600"),
        *("distillation/text", "distillation/logits"),
    ]
    assert all("instructions" in attack.needs and "forward passes" in attack.cost for attack in attacks)
    assert all(("the clean base" in attack.cost) == (attack.family == "distillation") for attack in attacks)
    assert lora.ATTACKS[0].needs == ("instructions", "peft")


def _answers_are_the_models(attacked: Attacked) -> None:
    assert attacked.model is not None
    prompts = [[5, 6, 7], [8, 9, 10]]
    with torch.inference_mode():
        first = attacked.model.model(torch.tensor(prompts)).logits[:, -1].argmax(-1)
    assert [answer.token_ids[0] for answer in attacked.completer.complete(prompts, 1)] == first.tolist()


def _in_bfloat16(model: LanguageModel) -> LanguageModel:
    copy = copy_of(model, model.name)
    copy.model.to(torch.bfloat16)
    return copy
