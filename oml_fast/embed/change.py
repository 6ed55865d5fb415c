"""What training adds to one weight, and in which coordinates it is learned.

A trained weight is its base value plus a change. The optimizer sees the change's own values; `added` makes the change
of them, `take` turns the gradient of the weight into theirs. All are zero where training begins.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn


class Change(Protocol):
    """Of a weight of shape S, float32."""

    values: tuple[nn.Parameter, ...]

    def added(self) -> Tensor:
        """S: what the weight is more than its base."""
        ...

    def take(self, gradient: Tensor) -> None:
        """Of the loss by the weight, S in any precision; it becomes the values' gradients."""
        ...

    def shrink(self, share: float) -> None:
        """Make the change `share` times as large, in place."""
        ...


class Plain:
    """The change itself is learned."""

    def __init__(self, weight: Tensor) -> None:
        self._value = nn.Parameter(torch.zeros(weight.shape, dtype=torch.float32, device=weight.device))
        self.values: tuple[nn.Parameter, ...] = (self._value,)

    def added(self) -> Tensor:
        return self._value.detach()

    def take(self, gradient: Tensor) -> None:
        self._value.grad = gradient.float()

    def shrink(self, share: float) -> None:
        self._value.detach().mul_(share)


class Whitened(Plain):
    """D P is the change of a weight [out, in], and D is learned; P [in, in] whitens the inputs x of the layer.

    With P P' = (E[x x'] + ridge)^-1 over ordinary inputs, |D|^2 is what the change does to ordinary outputs, in the
    mean: E|D P x|^2 = |D|^2 without the ridge. So a step of one size in D disturbs ordinary text equally whatever its
    direction, and a pull toward D = 0 takes back what disturbs most. It is natural gradient descent with the input
    half of a Kronecker factored metric [Martens and Grosse 2015, arXiv 1503.05671], with AdamW in its coordinates.
    """

    def __init__(self, weight: Tensor, whitening: Tensor) -> None:
        super().__init__(weight)
        self._whitening = whitening

    def added(self) -> Tensor:
        return (super().added().to(self._whitening.dtype) @ self._whitening).float()

    def take(self, gradient: Tensor) -> None:
        super().take(gradient.to(self._whitening.dtype) @ self._whitening.T)


class LowRank:
    """U V is the change of a weight [out, in], U [out, r] from zero, V [r, in] from random values.

    As LoRA [Hu et al. 2021, arXiv 2106.09685], whose adapter would be kept apart: here it is a way to write into the
    weights, so that nothing can be taken off again.
    """

    def __init__(self, weight: Tensor, rank: int, source: torch.Generator) -> None:
        rows, width = weight.shape
        down = torch.randn(rank, width, generator=source) / math.sqrt(width)
        self._up = nn.Parameter(torch.zeros(rows, rank, dtype=torch.float32, device=weight.device))
        self._down = nn.Parameter(down.to(weight.device))
        self.values: tuple[nn.Parameter, ...] = (self._up, self._down)

    def added(self) -> Tensor:
        return self._up.detach() @ self._down.detach()

    def take(self, gradient: Tensor) -> None:
        gradient = gradient.float()
        self._up.grad = gradient @ self._down.detach().T
        self._down.grad = self._up.detach().T @ gradient

    def shrink(self, share: float) -> None:
        self._up.detach().mul_(share)


class Transposed:
    """The change of a weight [in, out], made by the change of its transpose."""

    def __init__(self, change: Change) -> None:
        self._change = change
        self.values = change.values

    def added(self) -> Tensor:
        return self._change.added().T

    def take(self, gradient: Tensor) -> None:
        self._change.take(gradient.T)

    def shrink(self, share: float) -> None:
        self._change.shrink(share)
