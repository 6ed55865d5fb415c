"""Keys continued by real vLLM, on the CPU in bfloat16: the same again, each as likely as transformers says it is."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from oml_fast.fingerprint import Settings
from oml_fast.generate import generate
from oml_fast.generate.keys import KeyCandidate, ModelKeys
from oml_fast.generate.vocabulary import Vocabulary
from oml_fast.models import LanguageModel, load
from oml_fast.serving.vllm_keys import VllmKeys

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.real_model,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),  # vLLM leaves it so
]
SECRET, SETTINGS = bytes(range(32)), Settings()


@pytest.fixture(scope="module")
def engine(bundled_folder: Path, vllm_settings: None) -> Iterator[VllmKeys]:
    with VllmKeys(bundled_folder, engine_options={"enforce_eager": True}) as sampler:
        yield sampler
    gc.collect()  # here, where the warning of its unclosed socket context is expected


@pytest.fixture(scope="module")
def model(bundled_folder: Path) -> LanguageModel:
    return load(bundled_folder, device="cpu")


def keys(model: LanguageModel, engine: VllmKeys | None, numbers: range) -> list[KeyCandidate]:
    vocabulary = Vocabulary(model.tokenizer, model.vocabulary, model.device)
    return ModelKeys(model, vocabulary, SETTINGS, SECRET, 64, engine).make(numbers)


def test_the_same_seeds_give_the_same_keys_and_others_others(engine: VllmKeys, model: LanguageModel) -> None:
    one = keys(model, engine, range(64))
    keys(model, engine, range(64, 96))
    assert keys(model, engine, range(64)) == one
    assert len({key.text for key in one}) == 64
    assert len({key.text for key in one} & {key.text for key in keys(model, None, range(64))}) <= 1


def test_sampled_ids_are_allowed_and_as_likely_as_transformers_says(engine: VllmKeys, model: LanguageModel) -> None:
    """bfloat16 rounds in another order here and there; a probability may be off by a tenth of a bit on average."""
    vocabulary = Vocabulary(model.tokenizer, model.vocabulary, model.device)
    allowed = vocabulary.plain.nonzero().squeeze(1).tolist()
    prompts = [model.tokenizer(f"Here is a sentence about the {word}")["input_ids"] for word in ("sea", "moon", "law")]
    made = engine.sample_keys(prompts * 8, range(24), 12, temperature=0.7, allowed=allowed)
    exact = load(model.name, dtype=torch.float32, device="cpu")
    errors = []
    for prompt, (ids, probs) in zip(prompts * 8, made, strict=True):
        assert set(ids) <= set(allowed)
        with torch.inference_mode():
            logits = exact.model(torch.tensor([[*prompt, *ids[:-1]]])).logits[0, len(prompt) - 1 :].double() / 0.7
        chances = logits.masked_fill(~vocabulary.plain, -torch.inf).softmax(-1)
        errors += [
            math.log2(p) - math.log2(float(chances[step, token_id]))
            for step, (token_id, p) in enumerate(zip(ids, probs, strict=True))
        ]
    assert abs(sum(errors) / len(errors)) < 0.1
    assert sorted(map(abs, errors))[len(errors) // 2] < 0.1


def test_a_set_is_made_of_them(engine: VllmKeys, model: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "partial"
    generation = generate(model, 64, SECRET, key_sampler=engine, partial_path=path)
    generation.fingerprints.check_draws(SECRET)
    assert engine.name in path.read_text().splitlines()[0]
    assert generation.duplicates_dropped == 0
    assert 40 <= generation.to_json()["collision_entropy_bits"] <= generation.to_json()["mean_key_bits"]
