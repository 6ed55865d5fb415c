"""Shared and packed scoring against a plain forward pass, on several architectures."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import torch

from oml_fast.errors import InvalidArgumentError
from oml_fast.evaluate import likelihood
from oml_fast.evaluate.likelihood import Request, Tree, likelihoods, trees
from oml_fast.models import LanguageModel

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))
from architectures import CONFIGURATIONS, VOCABULARY, random_model


def requests(count: int = 12, seed: int = 0) -> list[Request]:
    """Groups of sequences with common beginnings of every length, and one given twice."""
    source = random.Random(seed)  # noqa: S311 - test data
    made = []
    for _ in range(count // 3):
        context = tuple(source.randrange(1, VOCABULARY) for _ in range(source.randint(1, 12)))
        for length in (1, 4, 7):
            ending = tuple(source.randrange(1, 6) for _ in range(length))  # few ids: endings share some
            made.append(Request(context + ending, len(context)))
    return [*made, made[0]]


@torch.no_grad()
def plain(model: LanguageModel, request: Request) -> tuple[float, bool]:
    """The reference: one sequence, all its logits."""
    logits = model.model(input_ids=torch.tensor([request.ids]), use_cache=False).logits[0].double()
    rows, targets = logits[request.start - 1 : -1], torch.tensor(request.ids[request.start :])
    chosen = rows.log_softmax(-1).gather(1, targets[:, None])
    return float(chosen.sum()), bool((rows.argmax(-1) == targets).all())


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_agrees_with_a_plain_forward(name: str) -> None:
    model = random_model(CONFIGURATIONS[name]())
    asked = requests()
    for request, found in zip(asked, likelihoods(model, asked), strict=True):
        wanted, greedy = plain(model, request)
        assert found.log_prob == pytest.approx(wanted, rel=1e-4, abs=1e-4)
        assert found.greedy == greedy


def test_agrees_in_float64_to_rounding() -> None:
    model = random_model(CONFIGURATIONS["gpt2"]())  # its norms and positions know no float32
    model.model.double().set_attn_implementation("sdpa")
    asked = requests(30)
    for request, found in zip(asked, likelihoods(model, asked), strict=True):
        assert found.log_prob == pytest.approx(plain(model, request)[0], abs=1e-11)


def test_trees_are_used_where_they_are_right_and_only_there() -> None:
    reach = {name: likelihood._reach(random_model(make())) for name, make in CONFIGURATIONS.items()}
    assert reach["llama"] > 1000
    assert reach["gpt2"] > 1000
    assert reach["phi, bias in the head"] > 1000
    assert {reach[name] for name in reach if "sliding window" in name} == {4}


def test_a_model_that_ignores_masks_is_computed_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(CONFIGURATIONS["llama"]())
    backbone = model.model.base_model
    forward = backbone.forward

    def deaf(input_ids=None, attention_mask=None, position_ids=None, **others):  # type: ignore[no-untyped-def]
        return forward(input_ids=input_ids, **others)

    monkeypatch.setattr(backbone, "forward", deaf)
    assert likelihood._reach(model) == 0
    asked = requests()
    assert likelihoods(model, asked)[5].log_prob == pytest.approx(plain(model, asked[5])[0], abs=1e-4)


def test_the_greedy_continuation_is_greedy() -> None:
    model = random_model(CONFIGURATIONS["llama"]())
    ids = [5, 6, 7]
    for _ in range(3):
        ids.append(int(model.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    other = (*ids[:-1], (ids[-1] + 1) % VOCABULARY)
    found = likelihoods(model, [Request(tuple(ids), 3), Request(other, 3)])
    assert [each.greedy for each in found] == [True, False]


def test_the_order_and_the_company_of_requests_change_nothing_but_rounding() -> None:
    model = random_model(CONFIGURATIONS["llama"]())
    asked = requests(30)
    together = likelihoods(model, asked)
    assert together == likelihoods(model, asked)
    assert [f.log_prob for f in likelihoods(model, asked[::-1])][::-1] == pytest.approx([f.log_prob for f in together])
    assert likelihoods(model, asked[3:4])[0].log_prob == pytest.approx(together[3].log_prob)


def test_a_beginning_is_computed_once() -> None:
    asked = [Request((1, 2, 3, 4, ending, 9), 4) for ending in (5, 6, 7, 8)]
    (tree,) = trees(asked, range(4))
    assert tree.ids == [1, 2, 3, 4, 5, 6, 7, 8]  # the last id of each is predicted, not read
    assert tree.depths == [0, 1, 2, 3, 4, 4, 4, 4]
    seen = tree.ancestors(9)
    assert seen[5].tolist() == [True] * 4 + [False, True, False, False, False]
    assert seen[8].tolist() == [False] * 8 + [True]


def test_trees_stay_small_but_for_a_shared_beginning() -> None:
    source = random.Random(0)  # noqa: S311 - test data
    apart = [Request(tuple(source.randrange(VOCABULARY) for _ in range(60)), 1) for _ in range(30)]
    assert max(map(len, trees(apart, range(30)))) <= 256
    context = tuple(source.randrange(VOCABULARY) for _ in range(200))
    shared = [Request((*context, *(source.randrange(VOCABULARY) for _ in range(30))), 200) for _ in range(4)]
    assert len(list(trees(shared, range(4)))) == 1


def test_no_requests() -> None:
    assert likelihoods(random_model(CONFIGURATIONS["llama"]()), []) == []
    assert len(Tree()) == 0


@pytest.mark.parametrize("request_", [Request((1, 2), 0), Request((1, 2), 2), Request((1,), 1), Request((), 0)])
def test_a_request_that_counts_nothing_is_refused(request_: Request) -> None:
    with pytest.raises(InvalidArgumentError, match="at least one"):
        likelihoods(random_model(CONFIGURATIONS["llama"]()), [request_])


@pytest.mark.parametrize("token_id", [-1, VOCABULARY])
def test_an_impossible_token_id_is_refused(token_id: int) -> None:
    with pytest.raises(InvalidArgumentError, match="tokenizer"):
        likelihoods(random_model(CONFIGURATIONS["llama"]()), [Request((1, token_id), 1)])
