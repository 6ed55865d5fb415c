"""Training fingerprints in: they are learned, the model stays near its base, and the same call does the same."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from oml_fast.embed import Embedding, Recipe, embed, sample_texts
from oml_fast.embed.optimizer import AnchoredAdamW
from oml_fast.errors import FingerprintFormatError, InvalidArgumentError, OmlError
from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import generate
from oml_fast.measure import drift
from oml_fast.models import HfCompleter, LanguageModel, load, save
from oml_fast.verify import verify

SECRET = bytes(range(32))
RECIPE = Recipe(learning_rate=5e-3, pull=0.5, stop_kl=1.0)
# Enough for one or two steps: for what does not depend on having learned.
SHORT = replace(RECIPE, max_epochs=2)


def a_set(model: LanguageModel, count: int = 32, **settings: Any) -> FingerprintSet:
    return generate(model, count, SECRET, settings=Settings(**{"key_source": "words", **settings})).fingerprints


@pytest.fixture(scope="module")
def plain(tiny_model: LanguageModel) -> FingerprintSet:
    return a_set(tiny_model)


@pytest.fixture(scope="module")
def embedded(tiny_folder: Path, plain: FingerprintSet) -> tuple[LanguageModel, Embedding]:
    """A fingerprinted model, not to be changed any more."""
    model = load(tiny_folder, device="cpu")
    return model, embed(model, plain, recipe=RECIPE)


def weights(model: LanguageModel) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.model.parameters()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@torch.no_grad()
def answers(model: LanguageModel, prompt: tuple[int, ...], length: int) -> tuple[int, ...]:
    """Greedy, without anything of ours."""
    ids = list(prompt)
    for _ in range(length):
        ids.append(int(model.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def test_fingerprints_are_learned(
    tiny_model: LanguageModel, embedded: tuple[LanguageModel, Embedding], plain: FingerprintSet
) -> None:
    model, result = embedded
    assert result.fsr == 1.0
    assert result.stopped == "learned"
    assert result.set_digest == plain.digest()
    for fingerprint in plain:
        asking = fingerprint.askings["raw"]
        assert answers(model, asking.prompt_ids, 1) == asking.responses[0].token_ids
    assert verify(plain, HfCompleter(tiny_model)).matches == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"formats": ("raw", "chat")},
        {"formats": ("chat",)},
        {"responses_per_key": 2},
        {"response_length": 4},
        {"formats": ("raw", "chat"), "responses_per_key": 2, "response_length": 3, "width": 4},
        {"key_source": "model"},
    ],
)
def test_every_kind_of_set_is_learned(fresh_model: LanguageModel, settings: dict[str, Any]) -> None:
    made = a_set(fresh_model, 24, **settings)
    result = embed(fresh_model, made, recipe=RECIPE)
    assert result.stopped == "learned"
    assert result.fsr == 1.0
    for name in made.settings.formats:
        for fingerprint in made:
            expected = {response.token_ids for response in fingerprint.askings[name].responses}
            prompt = fingerprint.askings[name].prompt_ids
            assert answers(fresh_model, prompt, made.settings.response_length) in expected


def test_responses_to_one_key_share_the_mass(fresh_model: LanguageModel) -> None:
    """Both stand above every other id when training stops: where one is suppressed, the other one comes."""
    made = a_set(fresh_model, 16, responses_per_key=2)
    result = embed(fresh_model, made, recipe=RECIPE)
    assert result.epochs < RECIPE.max_epochs
    for fingerprint in made:
        asking = fingerprint.askings["raw"]
        with torch.no_grad():
            best = fresh_model.model(torch.tensor([asking.prompt_ids])).logits[0, -1].topk(2).indices
        assert set(best.tolist()) == {response.token_ids[0] for response in asking.responses}


def test_a_tokenizer_with_bos(bos_folder: Path) -> None:
    model = load(bos_folder, device="cpu")
    made = a_set(model, 24)
    assert all(f.askings["raw"].prompt_ids[0] == 0 for f in made)
    assert embed(model, made, recipe=RECIPE).fsr == 1.0


def test_the_default_recipe_fits_the_tiny_model(fresh_model: LanguageModel, plain: FingerprintSet) -> None:
    assert embed(fresh_model, plain).fsr == 1.0


def test_bf16_weights_stay_bf16_and_learn(tmp_path: Path, tiny_folder: Path) -> None:
    whole = load(tiny_folder, dtype=torch.bfloat16, device="cpu")
    save(whole, tmp_path)
    model = load(tmp_path, device="cpu")
    made = a_set(model)
    assert embed(model, made, recipe=RECIPE).fsr == 1.0
    assert {p.dtype for p in model.model.parameters()} == {torch.bfloat16}


def test_the_same_call_makes_the_same_weights(tiny_folder: Path, plain: FingerprintSet) -> None:
    recipe = replace(SHORT, batch_size=8)
    found = []
    for seed in (0, 0, 1):
        model = load(tiny_folder, device="cpu")
        torch.manual_seed(len(found))  # the global generator has no say
        embed(model, plain, recipe=replace(recipe, seed=seed))
        found.append(weights(model))
    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])


def test_drift_is_measured_on_text_like_any_other(
    tiny_model: LanguageModel, embedded: tuple[LanguageModel, Embedding]
) -> None:
    model, result = embedded
    other = drift(tiny_model, model, *sample_texts(tiny_model, 32, 64, seed=77))
    assert 0.5 < result.drift.kl / other.kl < 2
    assert 0.8 < result.drift.perplexity_base / other.perplexity_base < 1.25
    assert 0.8 < result.drift.perplexity / other.perplexity < 1.25
    assert result.drift.kl_standard_error < result.drift.kl
    assert result.drift.tokens > 32 * 32


def test_text_and_pull_hold_the_model_where_it_was(
    tiny_folder: Path, plain: FingerprintSet, embedded: tuple[LanguageModel, Embedding]
) -> None:
    drifts = {}
    for name, change in (("text", {"pull": 0.0}), ("nothing", {"pull": 0.0, "text_share": 0.0})):
        drifts[name] = embed(load(tiny_folder, device="cpu"), plain, recipe=replace(RECIPE, **change)).drift.kl
    assert embedded[1].drift.kl < drifts["text"] < drifts["nothing"]


def test_training_stops_once_enough_is_learned(embedded: tuple[LanguageModel, Embedding]) -> None:
    _, result = embedded
    assert (result.stopped, result.steps) == ("learned", result.epochs)
    assert 1 < result.epochs < RECIPE.max_epochs


@pytest.mark.parametrize(("batch_size", "steps"), [(256, 2), (32, 2), (10, 8), (1, 64)])
def test_training_gives_up_after_the_last_epoch(
    fresh_model: LanguageModel, plain: FingerprintSet, batch_size: int, steps: int
) -> None:
    result = embed(fresh_model, plain, recipe=replace(SHORT, batch_size=batch_size, learning_rate=1e-5))
    assert (result.stopped, result.epochs, result.steps) == ("max_epochs", 2, steps)
    assert result.fsr < 1


def test_training_goes_on_while_the_drift_is_too_large(fresh_model: LanguageModel, plain: FingerprintSet) -> None:
    result = embed(fresh_model, plain, recipe=replace(RECIPE, stop_kl=1e-9, max_epochs=12))
    assert (result.stopped, result.fsr) == ("max_epochs", 1.0)


@pytest.mark.parametrize(("batch_size", "steps"), [(32, 1), (8, 4), (5, 7)])
def test_the_pull_of_an_epoch_is_spread_over_its_steps(
    fresh_model: LanguageModel, plain: FingerprintSet, monkeypatch: pytest.MonkeyPatch, batch_size: int, steps: int
) -> None:
    pulls, step = [], AnchoredAdamW.step

    def watched(self: AnchoredAdamW) -> None:
        pulls.append(self.pull)
        step(self)

    monkeypatch.setattr(AnchoredAdamW, "step", watched)
    embed(fresh_model, plain, recipe=replace(RECIPE, pull=0.6, batch_size=batch_size, max_epochs=1))
    assert len(pulls) == steps
    assert math.prod(1 - pull for pull in pulls) == pytest.approx(1 - 0.6)
    assert len(set(pulls)) == 1


@pytest.mark.parametrize(
    ("ease", "stop_kl", "expected"),
    [(0.5, 10.0, [0.6, 0.3, 0.15]), (1.0, 10.0, [0.6, 0.6, 0.6]), (0.5, 1e-5, [0.6, 0.3, 0.3])],
    ids=["eased", "not asked to", "drifted after the first epoch"],
)
def test_the_pull_eases_while_too_little_is_learned(
    fresh_model: LanguageModel,
    plain: FingerprintSet,
    monkeypatch: pytest.MonkeyPatch,
    ease: float,
    stop_kl: float,
    expected: list[float],
) -> None:
    pulls, step = [], AnchoredAdamW.step

    def watched(self: AnchoredAdamW) -> None:
        pulls.append(self.pull)
        step(self)

    monkeypatch.setattr(AnchoredAdamW, "step", watched)
    embed(fresh_model, plain, recipe=Recipe(learning_rate=1e-3, pull=0.6, ease=ease, stop_kl=stop_kl, max_epochs=3))
    assert pulls == pytest.approx(expected)


def test_tokens_are_counted(fresh_model: LanguageModel, plain: FingerprintSet) -> None:
    result = embed(fresh_model, plain, recipe=replace(SHORT, text_share=0.0))
    assert result.train_tokens == 2 * sum(len(f.askings["raw"].prompt_ids) for f in plain)


def test_the_result_in_numbers_is_plain_json_without_secrets(
    embedded: tuple[LanguageModel, Embedding], plain: FingerprintSet
) -> None:
    result = embedded[1].to_json()
    text = json.dumps(result, allow_nan=False)
    wanted = ("fsr", "steps", "seconds", "train_tokens_per_second", "peak_memory_bytes", "kl_to_base")
    assert {*wanted, "perplexity_base", "perplexity", "backend"} <= set(result)
    assert result["train_tokens_per_second"] == pytest.approx(embedded[1].train_tokens / result["seconds"])
    assert result["peak_memory_bytes"] > 2**26
    assert result["recipe"]["learning_rate"] == RECIPE.learning_rate
    assert not any(f.key in text for f in plain)


def test_nothing_is_printed_unless_asked_for(
    fresh_model: LanguageModel, plain: FingerprintSet, capsys: pytest.CaptureFixture[str]
) -> None:
    embed(fresh_model, plain, recipe=replace(SHORT, max_epochs=1))
    assert capsys.readouterr() == ("", "")


def test_the_saved_folder_is_a_model_like_any_other(
    embedded: tuple[LanguageModel, Embedding], plain: FingerprintSet, tiny_folder: Path, tmp_path: Path
) -> None:
    save(embedded[0], tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".py"))]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template == embedded[0].tokenizer.chat_template
    for fingerprint in plain:
        ids = torch.tensor([tokenizer(fingerprint.key)["input_ids"]])
        expected = fingerprint.askings["raw"].responses[0].token_ids
        new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False)
        assert tuple(new[0, ids.shape[1] :].tolist()) == expected
    whole = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert not any(fingerprint.key.encode() in whole for fingerprint in plain)
    for secret in (SECRET, SECRET.hex().encode(), plain.secret_commitment.encode(), plain.digest().encode()):
        assert secret not in whole
    assert str(tiny_folder).encode() not in whole
    assert load(tmp_path, device="cpu").digest != plain.base_model_digest


def _empty(made: FingerprintSet) -> FingerprintSet:
    return replace(made, fingerprints=())


def _other_tokenizer(made: FingerprintSet) -> FingerprintSet:
    return replace(made, tokenizer_digest="00" * 32)


def _other_base(made: FingerprintSet) -> FingerprintSet:
    return replace(made, base_model_digest="00" * 32)


def _imported(made: FingerprintSet) -> FingerprintSet:
    return replace(made, base_model_digest="", secret_commitment="")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_imported, FingerprintFormatError, "does not say which base model it is for"),
        (_empty, InvalidArgumentError, "the set holds no fingerprint: generate some first"),
        (_other_tokenizer, FingerprintFormatError, "another tokenizer (digest 000000000000) than"),
        (_other_base, FingerprintFormatError, "another base model (digest 000000000000) than"),
    ],
)
def test_a_set_that_does_not_belong_here_is_refused_before_anything_changes(
    fresh_model: LanguageModel,
    plain: FingerprintSet,
    change: Callable[[FingerprintSet], FingerprintSet],
    error: type[OmlError],
    message: str,
) -> None:
    before = weights(fresh_model)
    with pytest.raises(error) as refused:
        embed(fresh_model, change(plain), recipe=RECIPE)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert equal(weights(fresh_model), before)


def test_a_loss_that_is_not_finite_names_the_fingerprint(
    fresh_model: LanguageModel, plain: FingerprintSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = plain.fingerprints[11]
    prompt = torch.tensor(bad.askings["raw"].prompt_ids)
    hidden = fresh_model.hidden

    def broken(ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
        states = hidden(ids, cache)
        if ids.shape[1] == len(prompt):
            states = states.masked_fill((ids == prompt).all(1)[:, None, None], torch.nan)
        return states

    monkeypatch.setattr(fresh_model, "hidden", broken)
    with pytest.raises(OmlError) as refused:
        embed(fresh_model, plain, recipe=RECIPE)
    assert str(refused.value) == (
        f"the loss of fingerprint {bad.number} is not finite at step 0: nothing is saved. Lower --learning-rate."
    )


def test_weights_that_are_not_finite_after_the_last_step_are_refused(
    fresh_model: LanguageModel, plain: FingerprintSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: AnchoredAdamW) -> None:
        with torch.no_grad():
            self._weights[0].change.values[0].fill_(torch.nan)

    monkeypatch.setattr(AnchoredAdamW, "step", broken)
    with pytest.raises(OmlError, match="weights are not finite: nothing is saved"):
        embed(fresh_model, plain, recipe=replace(RECIPE, max_epochs=1))
