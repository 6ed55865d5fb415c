"""Batches, greedy decoding with a cache, and sampling from given uniform numbers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from architectures import CONFIGURATIONS, VOCABULARY, random_model
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from transformers import DynamicCache

from oml_fast.models import LanguageModel, batches_by_length, greedy, prefill, sample

PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16], [300, 2, 44, 9, 9, 9]]
LAST = 1 - 2.0**-53  # the greatest number below 1


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=40), st.integers(1, 7))
def test_batches_hold_each_sequence_once_with_others_of_its_length(sequences: list[list[int]], size: int) -> None:
    batches = list(batches_by_length(sequences, size))
    assert sorted(place for batch in batches for place in batch) == list(range(len(sequences)))
    lengths = [{len(sequences[place]) for place in batch} for batch in batches]
    assert all(len(length) == 1 for length in lengths)
    flat = [length for (length,) in lengths]
    assert flat == sorted(flat)
    full = [len(batch) == size for batch in batches]
    assert all(len(batch) <= size for batch in batches)
    assert all(was_full or first != second for (first, second), was_full in zip(pairwise(flat), full, strict=False))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_greedy_with_a_cache_is_argmax_without(name: str) -> None:
    model = random_model(CONFIGURATIONS[name]())
    logits, cache = prefill(model, PROMPTS, cache=True)
    ids, probs = greedy(model, logits, cache, 8)
    sequences = torch.tensor(PROMPTS)
    for step in range(8):
        with torch.no_grad():
            row = model.model(input_ids=sequences, use_cache=False).logits[:, -1].double()
        assert torch.equal(row.argmax(-1), ids[:, step])
        torch.testing.assert_close(row.softmax(-1).amax(-1), probs[:, step].double(), rtol=1e-4, atol=1e-7)
        sequences = torch.cat([sequences, ids[:, step : step + 1]], 1)


def test_one_step_needs_no_cache(tiny_model: LanguageModel) -> None:
    logits, cache = prefill(tiny_model, PROMPTS, cache=False)
    assert cache is None
    ids, _ = greedy(tiny_model, logits, None, 1)
    assert torch.equal(ids[:, 0], logits.argmax(-1))


def test_allowed_restricts_the_choice_and_not_the_probabilities(tiny_model: LanguageModel) -> None:
    logits, _ = prefill(tiny_model, PROMPTS, cache=False)
    allowed = torch.ones(tiny_model.vocabulary, dtype=torch.bool)
    allowed[logits.argmax(-1)] = False
    ids, probs = greedy(tiny_model, logits, None, 1, allowed)
    assert allowed[ids].all()
    assert torch.equal(ids[:, 0], logits.masked_fill(~allowed, -1e9).argmax(-1))
    torch.testing.assert_close(probs, logits.softmax(-1).gather(1, ids))


def drawn(
    model: LanguageModel, row: torch.Tensor, uniforms: torch.Tensor, temperature: float, allowed: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of `sample` from the same logits for each uniform: ids [N] and probabilities [N]."""
    logits = row.expand(len(uniforms), -1)
    ids, probs = sample(model, logits, DynamicCache(), uniforms[:, None], temperature=temperature, allowed=allowed)
    return ids[:, 0], probs[:, 0]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_samples_follow_the_softmax(tiny_model: LanguageModel, temperature: float) -> None:
    generator = torch.Generator().manual_seed(3)
    row = torch.randn(40, generator=generator)
    allowed = torch.rand(40, generator=generator) < 0.8
    uniforms = torch.rand(20_000, generator=generator, dtype=torch.float64)
    ids, probs = drawn(tiny_model, row, uniforms, temperature, allowed)
    expected = (row.double() / temperature).exp() * allowed
    expected /= expected.sum()
    torch.testing.assert_close(probs, expected[ids])
    frequent = 20_000 * expected >= 5
    counts = torch.bincount(ids, minlength=40)
    observed = [*counts[frequent].tolist(), int(counts[~frequent].sum())]
    wanted = [*(20_000 * expected[frequent]).tolist(), float(20_000 * expected[~frequent].sum())]
    pairs = [(o, w) for o, w in zip(observed, wanted, strict=True) if w > 0]
    assert not any(o for o, w in zip(observed, wanted, strict=True) if w == 0)
    assert stats.chisquare(*zip(*pairs, strict=True)).pvalue > 1e-4


def test_samples_on_a_grid_are_as_frequent_as_they_are_probable(tiny_model: LanguageModel) -> None:
    """The inverse of the distribution function, without chance: each count is right to within one."""
    row = torch.randn(30, generator=torch.Generator().manual_seed(4))
    grid = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    ids, _ = drawn(tiny_model, row, grid, 0.7, torch.ones(30, dtype=torch.bool))
    wanted = 10_000 * (row.double() / 0.7).softmax(-1)
    assert (torch.bincount(ids, minlength=30) - wanted).abs().max() <= 1
    assert ids.diff().min() >= 0


@given(seed=st.integers(0, 2**32), spread=st.floats(0.01, 20), vocabulary=st.integers(1, 60))
def test_no_uniform_gives_a_token_that_is_not_allowed(
    tiny_model: LanguageModel, seed: int, spread: float, vocabulary: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    row = spread * torch.randn(vocabulary, generator=generator)
    allowed = torch.rand(vocabulary, generator=generator) < 0.3
    allowed[int(torch.randint(vocabulary, (), generator=generator))] = True
    uniforms = torch.tensor([0.0, 2.0**-53, 0.5, LAST], dtype=torch.float64)
    ids, probs = drawn(tiny_model, row, uniforms, 0.7, allowed)
    assert allowed[ids].all()
    assert (probs > 0).all()


def test_sampling_goes_on_from_the_cache(tiny_model: LanguageModel) -> None:
    """With a temperature next to 0 sampling is greedy decoding."""
    allowed = torch.ones(tiny_model.vocabulary, dtype=torch.bool)
    uniforms = torch.rand(len(PROMPTS), 5, dtype=torch.float64)
    logits, cache = prefill(tiny_model, PROMPTS, cache=True)
    assert cache is not None
    sampled, probs = sample(tiny_model, logits, cache, uniforms, temperature=1e-6, allowed=allowed)
    logits, cache = prefill(tiny_model, PROMPTS, cache=True)
    assert torch.equal(sampled, greedy(tiny_model, logits, cache, 5)[0])
    torch.testing.assert_close(probs, torch.ones_like(probs))


def test_prefill_gives_the_logits_after_the_last_id() -> None:
    model = random_model(CONFIGURATIONS["llama"]())
    with torch.no_grad():
        theirs = model.model(input_ids=torch.tensor(PROMPTS)).logits[:, -1]
    logits, _ = prefill(model, PROMPTS, cache=False)
    assert logits.shape == (3, VOCABULARY)
    torch.testing.assert_close(logits, theirs)
