"""What is minimised, against the obvious way over all logits; and batches, which must change no gradient."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sets import small_set
from torch.nn import functional

from oml_fast.embed.data import Example, batches, examples, micro_batches
from oml_fast.embed.objective import response_loss, text_kl
from oml_fast.measure import BaseView
from oml_fast.models import LanguageModel


def some_examples(count: int, length: int, responses: int, seed: int = 0) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(3, 1500, (count, length + responses), generator=generator).tolist()
    return [Example(n, tuple(row[:-1]), tuple(row[length:])) for n, row in enumerate(rows)]


@pytest.mark.parametrize("responses", [1, 4])
@pytest.mark.parametrize("length", [1, 9])
def test_the_loss_is_cross_entropy_at_response_positions(
    tiny_model: LanguageModel, length: int, responses: int
) -> None:
    batch = some_examples(6, length, responses)
    with torch.no_grad():
        loss, probs = response_loss(tiny_model, batch)
        whole = torch.tensor([example.ids for example in batch])
        logits = tiny_model.model(whole).logits.double()
    assert probs.shape == (6, responses)
    for row, example in enumerate(batch):
        own = [logits[row, length - 1 + r].softmax(-1)[example.targets[r]] for r in range(responses)]
        assert float(loss[row]) == pytest.approx(float(-torch.stack(own).log().sum()), rel=1e-5)
        assert probs[row].tolist() == pytest.approx([float(p) for p in own], rel=1e-4)


@pytest.mark.parametrize("responses", [1, 3])
def test_the_losss_gradient_is_that_of_all_logits(fresh_model: LanguageModel, responses: int) -> None:
    batch = some_examples(5, 7, responses)
    response_loss(fresh_model, batch)[0].sum().backward()
    ours = gradients(fresh_model)
    ids = torch.tensor([example.ids for example in batch])
    labels = torch.full_like(ids, -100)
    labels[:, -responses:] = torch.tensor([example.targets for example in batch])
    logits = fresh_model.model(ids).logits
    functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    for one, other in zip(ours, gradients(fresh_model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_the_texts_kl_is_that_of_all_logits(fresh_model: LanguageModel, tiny_model: LanguageModel) -> None:
    with torch.no_grad():
        for parameter in fresh_model.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    texts = [list(example.ids) for example in some_examples(5, 12, 1)]
    ours = text_kl(fresh_model, texts, BaseView(tiny_model, texts).log_probs(range(5)))
    with torch.no_grad():
        p, q = (m.model(torch.tensor(texts)).logits[:, :-1].double().softmax(-1) for m in (tiny_model, fresh_model))
    assert float(ours.detach()) == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)
    assert float(ours.detach()) > 0.001
    ours.backward()
    assert all(gradient.abs().max() > 0 for gradient in gradients(fresh_model))


def test_the_texts_kl_of_the_base_model_is_0(tiny_model: LanguageModel) -> None:
    texts = [list(example.ids) for example in some_examples(3, 8, 1)]
    with torch.no_grad():
        kl = text_kl(tiny_model, texts, BaseView(tiny_model, texts).log_probs(range(3)))
    assert abs(float(kl)) < 1e-6


def gradients(model: LanguageModel) -> list[torch.Tensor]:
    """The gradients of all weights, which are then dropped."""
    own = [p.grad for p in model.model.parameters()]
    model.model.zero_grad(set_to_none=True)
    assert all(gradient is not None for gradient in own)
    return [gradient for gradient in own if gradient is not None]


@pytest.mark.parametrize("max_tokens", [1, 40, 4096])
def test_micro_batches_do_not_change_the_gradient(fresh_model: LanguageModel, max_tokens: int) -> None:
    fresh_model.model.double()
    batch = [*some_examples(7, 9, 2), *some_examples(5, 4, 2, seed=1)]
    found = []
    for parts in (micro_batches(batch, max_tokens), [[example] for example in batch]):
        for part in parts:
            (response_loss(fresh_model, part)[0].sum() / len(batch)).backward()
        found.append(gradients(fresh_model))
    for one, other in zip(*found, strict=True):
        # Backbone and gradients are float64; the logits of the loss are float32.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7 * float(other.abs().max()))


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - an order of examples is no secret


@st.composite
def example_lists(draw: st.DrawFn) -> list[Example]:
    lengths = draw(st.lists(st.integers(1, 20), min_size=1, max_size=30))
    return [Example(number, (number,) * length, (1,)) for number, length in enumerate(lengths)]


@given(example_lists(), st.integers(1, 80))
def test_micro_batches_hold_each_example_once_unpadded(items: list[Example], max_tokens: int) -> None:
    parts = list(micro_batches(items, max_tokens))
    assert sorted(example.number for part in parts for example in part) == list(range(len(items)))
    assert all(len({len(example.ids) for example in part}) == 1 for part in parts)
    assert all(len(part) == 1 or sum(len(example.ids) for example in part) <= max_tokens for part in parts)


@given(example_lists(), st.integers(1, 40), st.integers(0, 99))
def test_batches_hold_each_example_once_in_an_order_of_the_seed(items: list[Example], size: int, seed: int) -> None:
    one, other = (list(chain.from_iterable(batches(items, size, seeded(seed)))) for _ in range(2))
    assert one == other
    assert sorted(example.number for example in one) == list(range(len(items)))
    lengths = [len(batch) for batch in batches(items, size, seeded(seed))]
    assert all(length == size for length in lengths[:-1])
    assert 1 <= lengths[-1] <= size


def test_every_epoch_has_another_order() -> None:
    items, order = some_examples(40, 3, 1), seeded(0)
    epochs = [list(chain.from_iterable(batches(items, 8, order))) for _ in range(3)]
    assert len({tuple(example.number for example in epoch) for epoch in epochs}) == 3


def every_response() -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    made = small_set(4, formats=("raw", "chat"), responses_per_key=3, response_length=2)
    for fingerprint in made:
        for asking in fingerprint.askings.values():
            for response in asking.responses:
                yield fingerprint.number, asking.prompt_ids, response.token_ids


def test_examples_are_every_response_in_every_format() -> None:
    made = small_set(4, formats=("raw", "chat"), responses_per_key=3, response_length=2)
    found = examples(made)
    assert len(found) == 4 * 2 * 3
    for example, (number, prompt, response) in zip(found, every_response(), strict=True):
        assert example == Example(number, (*prompt, response[0]), response)
