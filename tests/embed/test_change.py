"""What training adds to a weight: the values' gradients are the true ones of the loss through base + change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from oml_fast.embed.change import Change, LowRank, Plain, Transposed, Whitened, shrink

ROWS, WIDTH = 5, 7


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain() -> tuple[Change, Callable[..., Tensor]]:
    return Plain(random(ROWS, WIDTH)), lambda value: value


def whitened() -> tuple[Change, Callable[..., Tensor]]:
    """Not symmetric: so a gradient that forgets to transpose is seen."""
    matrix = random(WIDTH, WIDTH, seed=1)
    return Whitened(random(ROWS, WIDTH), matrix), lambda value: value @ matrix.to(value.dtype)


def low_rank() -> tuple[Change, Callable[..., Tensor]]:
    return LowRank(random(ROWS, WIDTH), 3, torch.Generator().manual_seed(2)), lambda up, down: up @ down


KINDS = pytest.mark.parametrize("make", [plain, whitened, low_rank])


@KINDS
def test_nothing_is_added_where_training_begins(make: Callable[[], tuple[Change, Callable[..., Tensor]]]) -> None:
    change, _ = make()
    assert torch.equal(change.added(), torch.zeros(ROWS, WIDTH))
    assert all(value.dtype == torch.float32 for value in change.values)


@KINDS
def test_the_values_gradients_are_autograds(make: Callable[[], tuple[Change, Callable[..., Tensor]]]) -> None:
    change, form = make()
    for seed, value in enumerate(change.values):
        value.copy_(random(*value.shape, seed=10 + seed))
    base, inputs, wanted = random(ROWS, WIDTH, seed=3), random(11, WIDTH, seed=4), random(11, ROWS, seed=5)

    def loss(weight: Tensor) -> Tensor:
        return (torch.tanh(inputs.to(weight.dtype) @ weight.T) - wanted.to(weight.dtype)).square().sum()

    copies = [value.detach().double().requires_grad_() for value in change.values]
    added = form(*copies)
    torch.testing.assert_close(change.added().double(), added.detach(), rtol=1e-5, atol=1e-6)
    loss(base.double() + added).backward()
    weight = (base + change.added()).requires_grad_()
    loss(weight).backward()
    assert weight.grad is not None
    for gradient, copy in zip(change.gradients(weight.grad), copies, strict=True):
        assert copy.grad is not None
        torch.testing.assert_close(gradient.double(), copy.grad, rtol=1e-4, atol=1e-5)


@KINDS
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_to_shrink_is_of_the_whole_change(
    make: Callable[[], tuple[Change, Callable[..., Tensor]]], share: float
) -> None:
    change, _ = make()
    for seed, value in enumerate(change.values):
        value.copy_(random(*value.shape, seed=20 + seed))
    before = change.added().clone()
    shrink(change, share)
    torch.testing.assert_close(change.added(), share * before, rtol=1e-5, atol=1e-6)


@KINDS
def test_gradients_of_bf16_weights_have_the_values_shapes(
    make: Callable[[], tuple[Change, Callable[..., Tensor]]],
) -> None:
    change, _ = make()
    found = change.gradients(random(ROWS, WIDTH, seed=6).bfloat16())
    assert [gradient.shape for gradient in found] == [value.shape for value in change.values]
    assert all(gradient.is_floating_point() for gradient in found)


def test_a_whitening_in_bf16_is_the_same_to_its_precision() -> None:
    matrix = random(WIDTH, WIDTH, seed=1)
    whole, coarse = Whitened(random(ROWS, WIDTH), matrix), Whitened(random(ROWS, WIDTH), matrix.bfloat16())
    for change in (whole, coarse):
        change.values[0].copy_(random(ROWS, WIDTH, seed=7))
    assert coarse.added().dtype == torch.float32
    torch.testing.assert_close(coarse.added(), whole.added(), rtol=0, atol=0.02 * float(whole.added().abs().max()))
    one, other = (change.gradients(random(ROWS, WIDTH, seed=8))[0].float() for change in (coarse, whole))
    torch.testing.assert_close(one, other, rtol=0, atol=0.02 * float(other.abs().max()))


def test_a_low_rank_change_has_that_rank_and_its_source_decides() -> None:
    made = [LowRank(random(ROWS, WIDTH), 2, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    for change in made:
        up, down = change.values
        assert (up.shape, down.shape) == ((ROWS, 2), (2, WIDTH))
        up.copy_(random(ROWS, 2, seed=9))
    assert int(torch.linalg.matrix_rank(made[0].added())) == 2
    assert torch.equal(made[0].added(), made[1].added())
    assert not torch.equal(made[0].added(), made[2].added())


def test_a_low_rank_change_can_be_learned_from_nothing() -> None:
    """U is zero at first: V has no gradient then, but U must have one."""
    change = LowRank(random(ROWS, WIDTH), 2, torch.Generator().manual_seed(0))
    up, down = change.gradients(random(ROWS, WIDTH, seed=3))
    assert up.abs().min() > 0
    assert torch.equal(down, torch.zeros(2, WIDTH))


@KINDS
def test_of_a_weight_that_is_stored_the_other_way_round_it_is_the_transpose(
    make: Callable[[], tuple[Change, Callable[..., Tensor]]],
) -> None:
    plain, (inner, _) = make()[0], make()
    turned = Transposed(inner)
    assert len(turned.values) == len(inner.values)
    gradient = random(ROWS, WIDTH, seed=6)
    for seed, (one, other) in enumerate(zip(plain.values, turned.values, strict=True)):
        one.copy_(random(*one.shape, seed=30 + seed))
        other.copy_(one)
    for one, other in zip(plain.gradients(gradient), turned.gradients(gradient.T), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(turned.added(), plain.added().T)
    shrink(turned, 0.5)
    torch.testing.assert_close(turned.added(), 0.5 * plain.added().T)
