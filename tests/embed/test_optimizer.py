"""AnchoredAdamW: torch's AdamW on float32 changes, then a step back toward the base weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from oml_fast.embed.optimizer import AnchoredAdamW
from oml_fast.embed.weights import plain_weights

SHAPES = [(7, 13), (13,), (1,)]


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def give_gradients(own: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    for parameter in own:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


@pytest.mark.parametrize("pull", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_adamw_on_masters_and_then_a_pull(pull: float, dtype: torch.dtype) -> None:
    ours = parameters(dtype)
    optimizer = AnchoredAdamW(plain_weights(ours), 1e-2, pull)
    masters = [nn.Parameter(p.detach().float()) for p in parameters(dtype)]
    base = [p.detach().clone() for p in masters]
    adamw = torch.optim.AdamW(masters, lr=1e-2, weight_decay=0.0)
    for step in range(12):
        give_gradients(ours, step)
        for parameter, master in zip(ours, masters, strict=True):
            assert parameter.grad is not None
            master.grad = parameter.grad.float()
        optimizer.step()
        adamw.step()
        with torch.no_grad():
            for master, start in zip(masters, base, strict=True):
                master.lerp_(start, pull)
        for parameter, master in zip(ours, masters, strict=True):
            rounding = 2 * torch.finfo(dtype).eps if dtype != torch.float32 else 1e-6
            torch.testing.assert_close(parameter.float(), master, rtol=rounding, atol=1e-6)
    assert not torch.equal(ours[0].detach().float(), base[0])


def test_gradients_are_dropped_after_a_step() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        own = parameters(dtype)
        optimizer = AnchoredAdamW(plain_weights(own), 1e-2, 0.5)
        give_gradients(own, 0)
        optimizer.step()
        assert [p.grad for p in own] == [None] * len(own)


def test_steps_too_small_for_bf16_add_up() -> None:
    """At 1.0 the next bf16 number is 1/128 away; forty steps of 1/1000 must go there all the same."""
    parameter = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = AnchoredAdamW(plain_weights([parameter]), 1e-3, 0.0)
    for step in range(40):
        parameter.grad = torch.full((4,), -1.0, dtype=torch.bfloat16)
        optimizer.step()
        if step == 0:
            assert torch.equal(parameter.detach(), torch.ones(4, dtype=torch.bfloat16))
    assert parameter.dtype == torch.bfloat16
    torch.testing.assert_close(parameter.detach().float(), torch.full((4,), 1.04), rtol=0, atol=1 / 256)


@pytest.mark.parametrize("pull", [0.1, 0.75])
def test_without_a_gradient_only_the_pull_acts(pull: float) -> None:
    parameter = nn.Parameter(torch.zeros(3))
    (weight,) = plain_weights([parameter])
    optimizer = AnchoredAdamW([weight], 1e-2, pull)
    weight.change.values[0].fill_(1.0)
    for _ in range(5):
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((3,), (1 - pull) ** 5))


def test_rate_and_pull_may_be_set_between_steps() -> None:
    """A first step of Adam moves each weight by the rate, whatever its gradient."""
    own = parameters()
    optimizer = AnchoredAdamW(plain_weights(own), 1.0, 0.0)
    optimizer.learning_rate, optimizer.pull = 1e-2, 0.5
    assert optimizer.learning_rate == 1e-2
    give_gradients(own, 0)
    optimizer.step()
    for parameter, before in zip(own, parameters(), strict=True):
        torch.testing.assert_close(
            (parameter - before).abs().detach(), torch.full(parameter.shape, 0.005), rtol=1e-3, atol=1e-6
        )


def test_frozen_weights_stay() -> None:
    own = parameters()
    own[1].requires_grad_(False)
    before = own[1].detach().clone()
    optimizer = AnchoredAdamW(plain_weights(own), 1e-2, 0.5)
    give_gradients([own[0], own[2]], 0)
    optimizer.step()
    assert torch.equal(own[1].detach(), before)
    assert not torch.equal(own[0].detach(), parameters()[0].detach())
