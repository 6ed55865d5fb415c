"""The specification of every op: plain torch, slow and obvious. Tests compare every backend with this.

In float64, but for anchored_adamw: its float32 roundings are part of what it is, and a test holds it against float64.
"""

from __future__ import annotations

import enum
import math
from array import array
from typing import NamedTuple

import torch
from torch import Tensor

from .philox import element_words


class RowStatus(enum.IntEnum):
    """What became of a row. Above SHORT the row cannot be used, and its other outputs mean nothing."""

    OK = 0
    SHORT = 1  # fewer candidates than asked for
    NAN = 2
    NO_FINITE = 3  # every logit is -inf
    PLUS_INFINITY = 4


class PerinucleusRows(NamedTuple):
    """What every backend of perinucleus returns."""

    token_ids: Tensor  # [B, W] int64
    probs: Tensor  # [B, W] float64
    nucleus_size: Tensor  # [B] int64
    nucleus_mass: Tensor  # [B] float64
    status: Tensor  # [B] uint8, a RowStatus


def perinucleus(logits: Tensor, threshold: float, width: int, admissible: Tensor | None) -> PerinucleusRows:
    """[B, V] logits -> the first `width` admissible tokens after each row's nucleus. [SF 3.1]

    1. p = softmax(logits).
    2. Tokens in order of p falling, ties by id rising. (By logits, in fact: softmax keeps order, its rounding may not.)
    3. The nucleus is the shortest prefix whose mass reaches the threshold; at least one token.
    4. Candidates are the admissible tokens after it with p > 0.
    """
    rows = [_perinucleus_row(row.double(), threshold, width, admissible) for row in logits.detach()]
    return PerinucleusRows(*(torch.stack(column) for column in zip(*rows, strict=True)))


def _perinucleus_row(x: Tensor, threshold: float, width: int, admissible: Tensor | None) -> tuple[Tensor, ...]:
    token_ids = torch.full((width,), -1, dtype=torch.int64, device=x.device)
    probs = torch.zeros(width, dtype=torch.float64, device=x.device)
    size = torch.zeros((), dtype=torch.int64, device=x.device)
    mass = torch.zeros((), dtype=torch.float64, device=x.device)
    status = _row_status(x)
    if status == RowStatus.OK:
        order = torch.sort(x, descending=True, stable=True).indices
        e = torch.exp(x - x.max())
        p = (e / e.sum())[order]
        reached = p.cumsum(0) >= threshold
        # Rounding may leave even the whole row's sum just below a threshold next to 1.
        size = reached.nonzero()[0, 0] + 1 if reached.any() else size + len(x)
        mass = p[:size].sum()
        candidate = p > 0 if admissible is None else (p > 0) & admissible[order]
        candidate[:size] = False
        found = candidate.nonzero()[:width, 0]
        token_ids[: len(found)] = order[found]
        probs[: len(found)] = p[found]
        status = RowStatus.OK if len(found) == width else RowStatus.SHORT
    return token_ids, probs, size, mass, torch.tensor(status, dtype=torch.uint8, device=x.device)


def _row_status(x: Tensor) -> RowStatus:
    if x.isnan().any():
        return RowStatus.NAN
    if (x == torch.inf).any():
        return RowStatus.PLUS_INFINITY
    return RowStatus.NO_FINITE if (x == -torch.inf).all() else RowStatus.OK


class AdamWScalars(NamedTuple):
    """The numbers of one step, all of them float32 values: computed in float64, then rounded, for every backend."""

    beta1: float
    gain1: float  # 1 - beta1
    beta2: float
    gain2: float  # 1 - beta2
    step_size: float  # learning rate / (1 - beta1^step)
    root_factor: float  # 1 / sqrt(1 - beta2^step)
    eps: float
    keep: float  # 1 - pull


def adamw_scalars(step: int, learning_rate: float, pull: float, betas: tuple[float, float], eps: float) -> AdamWScalars:
    """The numbers of step 1, 2, ..."""
    beta1, beta2 = betas
    step_size = learning_rate / (1 - beta1**step)
    root_factor = 1 / math.sqrt(1 - beta2**step)
    exact = (beta1, 1 - beta1, beta2, 1 - beta2, step_size, root_factor, eps, 1 - pull)
    return AdamWScalars(*array("f", exact))


class AdamWTensors(NamedTuple):
    """What a step reads and writes; all of one shape."""

    change: Tensor | None
    gradient: Tensor
    first_moment: Tensor
    second_moment: Tensor
    base: Tensor | None
    weight: Tensor | None


class AdamWRounding(NamedTuple):
    """Which random words stochastic rounding takes."""

    seed: int
    step: int
    offset: int  # the index of the first element


def anchored_adamw(tensors: AdamWTensors, s: AdamWScalars, rounding: AdamWRounding) -> AdamWTensors:
    """AdamW without decay, then a share of the way back to the base. In float32, in this order:

    1. m = beta1 m + gain1 g;  v = beta2 v + (gain2 g) g.
    2. update = (step_size m) / (sqrt(v) root_factor + eps).
    3. With a change: change = (change - update) keep, and weight = base + change, rounded to nearest.
       Without: weight = base + ((weight - update) - base) keep; m, v and weight are rounded to bfloat16 stochastically.

    Every operation is rounded on its own, none fused into another, and square root and division are correctly rounded.
    Returns the new tensors, each in its dtype.
    """
    change, gradient, first_moment, second_moment, base, weight = tensors
    g = gradient.float()
    m = s.beta1 * first_moment.float() + s.gain1 * g
    v = s.beta2 * second_moment.float() + (s.gain2 * g) * g
    # Some builds of torch round a float32 root wrongly; by way of float64 it comes out right.
    update = (s.step_size * m) / (v.double().sqrt().float() * s.root_factor + s.eps)
    if change is not None:
        change = (change - update) * s.keep
        weight = None if base is None else (base.float() + change).to(base.dtype)
        return AdamWTensors(change, gradient, m, v, base, weight)
    assert base is not None
    assert weight is not None
    anchor = base.float()
    moved = anchor + ((weight.float() - update) - anchor) * s.keep
    words = element_words(rounding.offset, g.numel(), rounding.step, rounding.seed, g.device)
    word0, word1 = (word.view(g.shape) for word in words)
    m = _round_stochastically(m, word0 >> 16)
    v = _round_stochastically(v, word1 & 0xFFFF)
    return AdamWTensors(None, gradient, m, v, base, _round_stochastically(moved, word0 & 0xFFFF))


def _round_stochastically(x: Tensor, noise: Tensor) -> Tensor:
    """float32 -> bfloat16, up with the probability that makes the mean right. noise: integers in [0, 65535]."""
    bits = ((x.view(torch.int32).long() & 0xFFFFFFFF) + noise) >> 16
    bits = torch.where(x.isnan(), 0x7FC0, bits)
    return torch.where(bits >= 0x8000, bits - 0x10000, bits).to(torch.int16).view(torch.bfloat16)
