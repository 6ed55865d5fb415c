"""HfCompleter answers as the model does when asked key by key, in the order of the keys."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from oml_fast.completer import Completion
from oml_fast.errors import CompleterError
from oml_fast.models import HfCompleter, LanguageModel


def prompts(count: int = 40) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    return [torch.randint(3, 1500, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def naive(model: LanguageModel, prompt: Sequence[int], length: int) -> Completion:
    """One key at a time, no cache, all logits."""
    ids = list(prompt)
    for _ in range(length):
        ids.append(int(model.model(torch.tensor([ids])).logits[0, -1].argmax()))
    new = ids[len(prompt) :]
    return Completion(tuple(new), model.tokenizer.decode(new))


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_completions_are_greedy_and_in_order(tiny_model: LanguageModel, length: int, batch_size: int) -> None:
    asked = prompts()
    completions = HfCompleter(tiny_model, batch_size=batch_size).complete(asked, length)
    assert completions == [naive(tiny_model, prompt, length) for prompt in asked]


def test_no_prompts(tiny_model: LanguageModel) -> None:
    assert HfCompleter(tiny_model).complete([], 4) == []


@pytest.mark.parametrize("token_id", [1500, 2**31])
def test_an_id_beyond_the_vocabulary_is_refused(tiny_model: LanguageModel, token_id: int) -> None:
    with pytest.raises(CompleterError, match=f"token id {token_id}, the suspect has 1500: it has another tokenizer"):
        HfCompleter(tiny_model).complete([[5, 6], [5, token_id]], 1)


def test_the_highest_id_is_not(tiny_model: LanguageModel) -> None:
    assert len(HfCompleter(tiny_model).complete([[1499]], 1)) == 1


def test_it_says_what_was_asked(tiny_model: LanguageModel) -> None:
    completer = HfCompleter(tiny_model)
    assert completer.name == "transformers (cpu, float32)"
    assert completer.tokenizer_digest == tiny_model.tokenizer_digest
