"""The specification of every op: plain torch in float64, slow and obvious. Tests compare every backend with this."""

from __future__ import annotations

import enum
from typing import NamedTuple

import torch
from torch import Tensor


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
