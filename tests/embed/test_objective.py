"""What is minimised, against the obvious way in float64 over all logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from oml_fast.embed.data import Example
from oml_fast.embed.objective import CrossEntropy, MinimumKL, Objective, response_loss, stay_kl, text_kl
from oml_fast.measure import BaseView, States
from oml_fast.models import LanguageModel

VOCABULARY = 37


def some_examples(count: int, length: int, tail: int = 0, firsts: int = 1, seed: int = 0) -> list[Example]:
    """Keys of `length` ids, `firsts` responses that differ in their first id, and a tail after the first of them."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        ids = torch.randperm(1490, generator=generator)[: length + firsts + tail].add(3).tolist()
        key, wanted, after = ids[:length], ids[length : length + firsts], ids[length + firsts :]
        read = [*key, wanted[0], *after][: length + tail]
        found.append(Example(number, tuple(read), tuple(wanted), tuple(after)))
    return found


def some_logits(rows: int = 5, seed: int = 0, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def moved(model: LanguageModel, size: float = 0.02) -> LanguageModel:
    """Every weight changed a little."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


def gradients(model: LanguageModel) -> list[Tensor]:
    """The gradients of all weights, which are then dropped."""
    own = [p.grad for p in model.model.parameters()]
    model.model.zero_grad(set_to_none=True)
    assert all(gradient is not None for gradient in own)
    return [gradient for gradient in own if gradient is not None]


# --- at one position


def loss_of(objective: Objective, logits: Tensor, base: Tensor | None, wanted: Tensor) -> Tensor:
    """The objective where the models' logits [N, V] are these: the states are the logits, the heads do nothing."""
    nothing = torch.eye(VOCABULARY), None
    model: Any = SimpleNamespace(head=lambda: nothing, curve={})
    return objective.loss(model, logits, None if base is None else States(base, nothing), wanted)[0]


@pytest.mark.parametrize("responses", [1, 2, 5])
def test_cross_entropy_is_the_mean_over_the_responses(responses: int) -> None:
    log_probs = some_logits().log_softmax(-1)
    wanted = torch.stack([torch.randperm(VOCABULARY)[:responses] for _ in range(5)])
    found = loss_of(CrossEntropy(), some_logits(), None, wanted)
    expected = [
        -sum(float(row[i]) for i in ids) / responses for row, ids in zip(log_probs, wanted.tolist(), strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def raised(base: Tensor, wanted: Sequence[int], objective: MinimumKL) -> Tensor:
    """[V] float64: q by its definition; m found by bisection where the cap binds."""
    base = base.double()
    others = [i for i in range(len(base)) if i not in wanted]
    top = max(float(base[i]) for i in others)

    def q(margin: float) -> Tensor:
        raised_logits = base.clone()
        for j, token_id in enumerate(wanted):
            raised_logits[token_id] = top + margin - j * objective.step
        return raised_logits.softmax(0)

    if float(q(objective.margin)[wanted[0]]) <= objective.cap:
        return q(objective.margin)
    low, high = -50.0, objective.margin
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float(q(middle)[wanted[0]]) <= objective.cap else (low, middle)
    return q(low)


WANTED: dict[str, Callable[[int], list[int]]] = {
    "one": lambda best: [(best + 1) % VOCABULARY],
    "its own best": lambda best: [best],
    "three": lambda best: [(best + i) % VOCABULARY for i in (3, 1, 2)],
    "three with its own best last": lambda best: [(best + i) % VOCABULARY for i in (3, 1, 0)],
}


@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED.keys())
@pytest.mark.parametrize("margin", [0.5, 2.5, 15.0])
@pytest.mark.parametrize("step", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("cap", [0.55, 0.9, 1.0])
def test_the_loss_is_the_divergence_from_the_base_with_its_responses_raised(
    wanted: Callable[[int], list[int]], margin: float, step: float, cap: float
) -> None:
    objective, base, own = MinimumKL(margin, step, cap), some_logits(), some_logits(seed=1)
    ids = [wanted(int(row.argmax())) for row in base]
    targets = [raised(row, row_ids, objective) for row, row_ids in zip(base, ids, strict=True)]
    for q, row_ids in zip(targets, ids, strict=True):
        assert float(q[row_ids[0]]) <= cap + 1e-9
        assert int(q.argmax()) == row_ids[0] or step == 0
    found = loss_of(objective, own, base, torch.tensor(ids))
    p = own.double().log_softmax(-1)
    expected = [float((q * (q.log() - row)).sum()) for q, row in zip(targets, p, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    nothing_left = loss_of(objective, torch.stack(targets).log().float(), base, torch.tensor(ids))
    assert float(nothing_left.abs().max()) < 1e-5


def test_at_extremes_the_loss_and_its_gradient_are_finite_and_the_base_has_none() -> None:
    base = torch.zeros(3, VOCABULARY)
    base[0, 5], base[1, 6], base[2, 7] = 80.0, -80.0, 0.0
    base.requires_grad_()
    logits = (60 * some_logits(3)).requires_grad_()
    for objective in (MinimumKL(), MinimumKL(20.0, 0.0, 1.0), CrossEntropy()):
        loss_of(objective, logits, base, torch.tensor([[5, 1], [6, 1], [7, 1]])).sum().backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
        assert logits.grad.abs().max() > 0
        logits.grad = None
    assert base.grad is None


# --- where a key is answered


@pytest.mark.parametrize("tail", [0, 3])
@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize("firsts", [1, 2])
@pytest.mark.parametrize("objective", [CrossEntropy(), MinimumKL()], ids=["cross-entropy", "minimum KL"])
def test_the_loss_is_the_objectives_at_response_positions(
    fresh_model: LanguageModel, tiny_model: LanguageModel, objective: Objective, firsts: int, length: int, tail: int
) -> None:
    moved(fresh_model)
    batch = some_examples(6, length, tail, firsts)
    assert all(len(example.ids) == length + tail for example in batch)
    view = BaseView(tiny_model, [example.sequence for example in batch], [example.start for example in batch])
    assert len(view.states(range(6)).hidden) == 6 * (tail + 1)
    with torch.no_grad():
        loss, _ = response_loss(fresh_model, batch, objective, view.states(range(6)))
        ids = torch.tensor([example.ids for example in batch])
        p, b = (m.model(ids).logits.double() for m in (fresh_model, tiny_model))
    for row, example in enumerate(batch):
        expected = 0.0
        for place in range(tail + 1):
            wanted = example.firsts if place == 0 else (example.tail[place - 1],)
            at = length - 1 + place
            log_p = p[row, at].log_softmax(-1)
            if isinstance(objective, MinimumKL):
                q = raised(b[row, at], wanted, objective)
                expected += float((q * (q.log() - log_p)).sum())
            else:
                expected -= sum(float(log_p[i]) for i in wanted) / len(wanted)
        assert float(loss[row]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("tail", [0, 2])
def test_the_losss_gradient_is_that_of_all_logits(fresh_model: LanguageModel, tail: int) -> None:
    batch = some_examples(5, 7, tail)
    response_loss(fresh_model, batch, CrossEntropy())[0].sum().backward()
    ours = gradients(fresh_model)
    ids = torch.tensor([example.ids for example in batch])
    labels = torch.full_like(ids, -100)
    labels[:, 6:] = torch.tensor([(*example.firsts, *example.tail) for example in batch])
    logits = fresh_model.model(ids).logits
    functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    for one, other in zip(ours, gradients(fresh_model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("tail", [0, 2])
@pytest.mark.parametrize("firsts", [1, 3])
def test_learned_is_what_a_greedy_reader_would_say(tiny_model: LanguageModel, tail: int, firsts: int) -> None:
    """The wanted ids are taken from the model itself, and then spoilt at one place after the other."""
    ids = some_examples(1, 8)[0].ids

    def logits(read: tuple[int, ...]) -> Tensor:
        with torch.no_grad():
            return tiny_model.model(torch.tensor([read])).logits[0, -1]

    best = tuple(logits(ids).topk(firsts + 1).indices.tolist())
    read, after = ids, []
    for place in range(tail):
        read = (*read, best[0] if place == 0 else after[-1])
        after.append(int(logits(read).argmax()))
    good = Example(0, read, best[:firsts], tuple(after))
    backwards = Example(1, read, best[:firsts][::-1], tuple(after))
    spoilt = [Example(2, read, (*best[: firsts - 1], best[firsts]), tuple(after))]
    spoilt += [
        Example(3, read, best[:firsts], (*after[:place], (after[place] + 1) % 1500, *after[place + 1 :]))
        for place in range(tail)
    ]
    with torch.no_grad():
        learned = response_loss(tiny_model, [good, backwards, *spoilt], CrossEntropy())[1]
    assert learned.tolist() == [True, True, *[False] * len(spoilt)]


def test_the_divergence_of_an_untrained_model_tells_what_must_be_learned(tiny_model: LanguageModel) -> None:
    """At the base itself, KL(q || b) of one response is a binary one: the others keep their proportions."""
    batch = some_examples(6, 5)
    view = BaseView(tiny_model, [example.sequence for example in batch], [example.start for example in batch])
    objective, logits = MinimumKL(), view.logits(range(6))
    with torch.no_grad():
        loss, learned = response_loss(tiny_model, batch, objective, view.states(range(6)))
    wanted = torch.tensor([example.firsts for example in batch])
    q = torch.stack([raised(row, ids, objective)[ids] for row, ids in zip(logits, wanted.tolist(), strict=True)])[:, 0]
    b = logits.double().softmax(-1).gather(1, wanted)[:, 0]
    expected = q * (q / b).log() + (1 - q) * ((1 - q) / (1 - b)).log()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=1e-5)
    assert not learned.any()
    assert float(q.max()) <= objective.cap + 1e-6
    assert math.isfinite(float(loss.sum()))


# --- everywhere else


@pytest.mark.parametrize("start", [1, 5])
def test_the_texts_kl_is_that_of_all_logits(fresh_model: LanguageModel, tiny_model: LanguageModel, start: int) -> None:
    moved(fresh_model)
    texts = [list(example.ids) for example in some_examples(5, 12)]
    base = BaseView(tiny_model, texts, [start] * 5)
    ours = text_kl(fresh_model, texts, base.states(range(5)), [start] * 5).mean()
    with torch.no_grad():
        both = (m.model(torch.tensor(texts)).logits[:, start - 1 : -1] for m in (tiny_model, fresh_model))
        p, q = (logits.double().softmax(-1) for logits in both)
    assert float(ours.detach()) == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)
    assert float(ours.detach()) > 0.001
    ours.backward()
    assert all(gradient.abs().max() > 0 for gradient in gradients(fresh_model))


def test_the_texts_kl_of_the_base_model_is_0(tiny_model: LanguageModel) -> None:
    texts = [list(example.ids) for example in some_examples(3, 8)]
    with torch.no_grad():
        kl = text_kl(tiny_model, texts, BaseView(tiny_model, texts).states(range(3)))
    assert float(kl.abs().max()) < 1e-6


def test_to_stay_is_the_divergence_after_the_last_id(fresh_model: LanguageModel, tiny_model: LanguageModel) -> None:
    moved(fresh_model)
    prompts = [example.ids for example in some_examples(5, 12)]
    view = BaseView(tiny_model, [(*prompt, 3) for prompt in prompts], [12] * 5)
    kl, best = stay_kl(fresh_model, view.sequences, view.states(range(5)))
    with torch.no_grad():
        p, q = (m.model(torch.tensor(prompts)).logits[:, -1].double().softmax(-1) for m in (tiny_model, fresh_model))
    torch.testing.assert_close(kl.detach().double(), (p * (p / q).log()).sum(-1), rtol=1e-3, atol=1e-5)
    assert torch.equal(best, q.argmax(-1))
    assert not best.requires_grad
    kl.sum().backward()
    assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in gradients(fresh_model))
    with torch.no_grad():
        assert float(stay_kl(tiny_model, view.sequences, view.states(range(5)))[0].abs().max()) < 1e-5
