"""What is trained on: examples of every asking, in batches of the seed's order, in parts of one length."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sets import small_set

from oml_fast.embed.data import Example, batches, example_batches, examples, micro_batches, of_asking
from oml_fast.embed.objective import CrossEntropy, response_loss
from oml_fast.models import LanguageModel


def some_examples(count: int, length: int, tail: int = 0, seed: int = 0) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(3, 1500, (count, length + 1 + tail), generator=generator).tolist()
    return [
        Example(n, tuple(row[: length + tail]), (row[length],), tuple(row[length + 1 :])) for n, row in enumerate(rows)
    ]


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - an order of examples is no secret


@st.composite
def example_lists(draw: st.DrawFn) -> list[Example]:
    lengths = draw(st.lists(st.integers(1, 20), min_size=1, max_size=30))
    return [Example(number, (number,) * length, (1,)) for number, length in enumerate(lengths)]


@given(example_lists(), st.integers(1, 80))
def test_micro_batches_hold_each_place_once_unpadded(items: list[Example], max_tokens: int) -> None:
    sequences = [item.ids for item in items]
    parts = list(micro_batches(sequences, max_tokens))
    assert sorted(chain.from_iterable(parts)) == list(range(len(items)))
    assert all(len({len(sequences[place]) for place in part}) == 1 for part in parts)
    assert all(len(part) == 1 or sum(len(sequences[place]) for place in part) <= max_tokens for part in parts)


def test_of_nothing_there_is_no_micro_batch() -> None:
    assert list(micro_batches([])) == []


@st.composite
def unlike_examples(draw: st.DrawFn) -> list[Example]:
    """Of several lengths, numbers of first ids and lengths of tails."""
    shapes = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=30))
    return [
        Example(number, (7,) * (length + tail), tuple(range(firsts)), (8,) * tail)
        for number, (length, firsts, tail) in enumerate(shapes)
    ]


@given(unlike_examples())
def test_examples_that_are_not_alike_do_not_mix(items: list[Example]) -> None:
    parts = list(example_batches(items))
    assert sorted(chain.from_iterable(parts)) == list(range(len(items)))
    for part in parts:
        assert len({(len(items[p].ids), len(items[p].firsts), len(items[p].tail)) for p in part}) == 1


def test_alike_examples_go_together_and_are_learned_as_they_are_alone(fresh_model: LanguageModel) -> None:
    """Two responses may begin with one id, so keys have different numbers of firsts."""
    one, two = Example(0, (5, 6, 7), (8,)), Example(1, (7, 6, 5), (9, 10))
    longer = Example(2, (5, 6, 7), (11,), (12,))
    items = [one, two, replace(one, number=3), longer, replace(two, number=4)]
    assert sorted(map(sorted, example_batches(items))) == [[0, 2], [1, 4], [3]]
    for part in example_batches(items):
        together, _ = response_loss(fresh_model, [items[place] for place in part], CrossEntropy())
        alone = [response_loss(fresh_model, [items[place]], CrossEntropy())[0] for place in part]
        torch.testing.assert_close(together, torch.cat(alone))


@given(example_lists(), st.integers(1, 40), st.integers(0, 99))
def test_batches_hold_each_place_once_in_an_order_of_the_seed(items: list[Example], size: int, seed: int) -> None:
    one, other = (list(chain.from_iterable(batches(items, size, seeded(seed)))) for _ in range(2))
    assert one == other
    assert sorted(one) == list(range(len(items)))
    lengths = [len(batch) for batch in batches(items, size, seeded(seed))]
    assert all(length == size for length in lengths[:-1])
    assert 1 <= lengths[-1] <= size


def test_every_epoch_has_another_order() -> None:
    items, order = some_examples(40, 3), seeded(0)
    epochs = [list(chain.from_iterable(batches(items, 8, order))) for _ in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("max_tokens", [1, 40, 4096])
def test_micro_batches_do_not_change_the_gradient(fresh_model: LanguageModel, max_tokens: int) -> None:
    batch = [*some_examples(7, 9, 1), *some_examples(5, 4, 1, seed=1)]
    found = []
    for parts in (micro_batches([item.ids for item in batch], max_tokens), [[place] for place in range(len(batch))]):
        for part in parts:
            (response_loss(fresh_model, [batch[p] for p in part], CrossEntropy())[0].sum() / len(batch)).backward()
        found.append([p.grad.clone() for p in fresh_model.model.parameters()])
        fresh_model.model.zero_grad(set_to_none=True)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_responses_of_one_id_to_one_asking_are_one_example() -> None:
    made = small_set(4, formats=("raw", "chat"), responses_per_key=3)
    found = examples(made)
    askings = [(f.number, asking) for f in made for asking in f.askings.values()]
    assert len(found) == len(askings) == 8
    for example, (number, asking) in zip(found, askings, strict=True):
        firsts = tuple(response.token_ids[0] for response in asking.responses)
        assert example == Example(number, asking.prompt_ids, firsts)
        assert len(firsts) == 3
        assert example.sequence == (*asking.prompt_ids, firsts[0])
        assert example.start == len(asking.prompt_ids)


def test_a_first_id_that_two_responses_share_is_wanted_once() -> None:
    fingerprint = small_set(1, responses_per_key=3).fingerprints[0]
    asking = fingerprint.askings["raw"]

    def found(*ids: tuple[int, ...]) -> list[Example]:
        responses = tuple(replace(r, token_ids=own) for r, own in zip(asking.responses, ids, strict=True))
        return of_asking(fingerprint, replace(asking, responses=responses), [1, 2])

    assert found((9,), (3,), (9,)) == [Example(0, (1, 2), (9, 3))]
    assert found((9, 4), (3, 5), (9, 6)) == [
        Example(0, (1, 2, 9), (9, 3), (4,)),
        Example(0, (1, 2, 3), (9, 3), (5,)),
        Example(0, (1, 2, 9), (9, 3), (6,)),
    ]


def test_longer_responses_are_an_example_each_and_share_their_first_ids() -> None:
    made = small_set(4, formats=("raw", "chat"), responses_per_key=3, response_length=4)
    found = iter(examples(made))
    for fingerprint in made:
        for asking in fingerprint.askings.values():
            firsts = tuple(response.token_ids[0] for response in asking.responses)
            for response in asking.responses:
                example = next(found)
                ids = (*asking.prompt_ids, *response.token_ids[:-1])
                assert example == Example(fingerprint.number, ids, firsts, response.token_ids[1:])
                assert example.sequence == (*asking.prompt_ids, *response.token_ids)
                assert example.sequence[example.start :] == response.token_ids
    assert next(found, None) is None


def test_an_asking_may_be_put_after_another_prompt() -> None:
    made = small_set(1, responses_per_key=2)
    asking = made.fingerprints[0].askings["raw"]
    (example,) = of_asking(made.fingerprints[0], asking, [9, 8, 7])
    assert (example.ids, example.firsts) == ((9, 8, 7), tuple(r.token_ids[0] for r in asking.responses))


@given(example_lists(), st.integers(1, 60))
def test_packed_micro_batches_hold_any_lengths_up_to_the_limit(items: list[Example], most: int) -> None:
    sequences = [item.ids for item in items]
    found = list(micro_batches(sequences, most, packed=True))
    assert sorted(chain.from_iterable(found)) == list(range(len(items)))
    for part in found:
        assert len(part) == 1 or sum(len(sequences[place]) for place in part) <= most
    sizes = [sum(len(sequences[place]) for place in part) for part in found]
    assert all(one + len(sequences[after[0]]) > most for one, after in zip(sizes, found[1:], strict=False))


def test_packed_examples_are_learned_as_they_are_alone(fresh_model: LanguageModel) -> None:
    batch = [*some_examples(5, 9, 1), *some_examples(4, 4, 1, seed=1)]
    (part,) = example_batches(batch, packed=True)
    together, learned = response_loss(fresh_model, [batch[place] for place in part], CrossEntropy())
    alone = [response_loss(fresh_model, [batch[place]], CrossEntropy()) for place in part]
    torch.testing.assert_close(together, torch.cat([loss for loss, _ in alone]), rtol=1e-4, atol=1e-4)
    assert learned.tolist() == [bool(answer) for _, answer in alone]
