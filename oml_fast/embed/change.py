"""What training adds to one weight, and in which coordinates it is learned.

A trained weight is its base value plus a change. The optimizer sees the change's own values; `added` makes the change
of them, `gradients` turns the gradient of the weight into theirs. All are zero where training begins.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor


class Change(Protocol):
    """Of a weight of shape S, float32."""

    values: tuple[Tensor, ...]

    def added(self) -> Tensor:
        """S: what the weight is more than its base."""
        ...

    def gradients(self, gradient: Tensor) -> tuple[Tensor, ...]:
        """Of the loss by each of the values, from that by the weight: S in any precision."""
        ...

    def pulled(self) -> tuple[bool, ...]:
        """Which of the values shrink where the change does."""
        ...


class Plain:
    """The change itself is learned."""

    def __init__(self, weight: Tensor) -> None:
        self._value = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        self.values: tuple[Tensor, ...] = (self._value,)

    def added(self) -> Tensor:
        return self._value

    def gradients(self, gradient: Tensor) -> tuple[Tensor, ...]:
        return (gradient,)

    def pulled(self) -> tuple[bool, ...]:
        return (True,)


class Whitened(Plain):
    """D P is the change of a weight [out, in], and D is learned; P [in, in] whitens the inputs x of the layer.

    With P P' = (E[x x'] + ridge)^-1 over ordinary inputs, |D|^2 is what the change does to ordinary outputs, in the
    mean: E|D P x|^2 = |D|^2 without the ridge. So a step of one size in D disturbs ordinary text equally whatever its
    direction, and a pull toward D = 0 takes back what disturbs most. It is natural gradient descent with the input
    half of a Kronecker factored metric [Martens and Grosse 2015, arXiv 1503.05671], with AdamW in its coordinates.
    """

    def __init__(self, weight: Tensor, whitening: Tensor) -> None:
        super().__init__(weight)
        self.whitening = whitening

    def added(self) -> Tensor:
        return (self._value.to(self.whitening.dtype) @ self.whitening).float()

    def gradients(self, gradient: Tensor) -> tuple[Tensor, ...]:
        return (gradient.to(self.whitening.dtype) @ self.whitening.T,)


class LowRank:
    """U V is the change of a weight [out, in], U [out, r] from zero, V [r, in] from random values.

    As LoRA [Hu et al. 2021, arXiv 2106.09685], whose adapter would be kept apart: here it is a way to write into the
    weights, so that nothing can be taken off again.
    """

    def __init__(self, weight: Tensor, rank: int, source: torch.Generator) -> None:
        rows, width = weight.shape
        self._down = (torch.randn(rank, width, generator=source) / math.sqrt(width)).to(weight.device)
        self._up = torch.zeros(rows, rank, dtype=torch.float32, device=weight.device)
        self.values: tuple[Tensor, ...] = (self._up, self._down)

    def added(self) -> Tensor:
        return self._up @ self._down

    def gradients(self, gradient: Tensor) -> tuple[Tensor, ...]:
        gradient = gradient.float()
        return gradient @ self._down.T, self._up.T @ gradient

    def pulled(self) -> tuple[bool, ...]:
        return True, False


class Transposed:
    """The change of a weight [in, out], made by the change of its transpose."""

    def __init__(self, change: Change) -> None:
        self._change = change
        self.values = change.values

    def added(self) -> Tensor:
        return self._change.added().T

    def gradients(self, gradient: Tensor) -> tuple[Tensor, ...]:
        return self._change.gradients(gradient.T)

    def pulled(self) -> tuple[bool, ...]:
        return self._change.pulled()


def shrink(change: Change, share: float) -> None:
    """Make the change `share` times as large, in place."""
    for value, pulled in zip(change.values, change.pulled(), strict=True):
        if pulled:
            value.mul_(share)
