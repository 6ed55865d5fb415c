"""Perinucleus in vectorised torch, for any device with float64. Masses are 64-bit integers; few tokens are sorted."""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import PerinucleusRows, RowStatus

# This many logits at a time, to bound memory; and this many of the largest are sorted before whole rows are.
_CHUNK_ELEMENTS = 2**22
_TOP = 1024


def perinucleus(logits: Tensor, threshold: float, width: int, admissible: Tensor | None) -> PerinucleusRows:
    """[B, V] logits, B > 0 -> what `reference.perinucleus` returns."""
    chunks = torch.split(logits, max(1, _CHUNK_ELEMENTS // logits.shape[1]))
    parts = [_chunk(chunk.float(), threshold, width, admissible) for chunk in chunks]
    return PerinucleusRows(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _chunk(x: Tensor, threshold: float, width: int, admissible: Tensor | None) -> PerinucleusRows:
    status = torch.zeros(len(x), dtype=torch.uint8, device=x.device)
    status[(x == -torch.inf).all(-1)] = RowStatus.NO_FINITE
    status[(x == torch.inf).any(-1)] = RowStatus.PLUS_INFINITY
    status[x.isnan().any(-1)] = RowStatus.NAN
    # Adding 0 makes -0 and +0 one value, for sorts that look at bits.
    x = x.masked_fill((status > RowStatus.SHORT)[:, None], 0) + 0.0
    scale = 2.0 ** min(44, 62 - (x.shape[1] - 1).bit_length())
    e = torch.exp(x.double() - x.amax(-1, keepdim=True).double())
    total = (e * scale).round().long().sum(-1, keepdim=True).double()

    everything = x.shape[1] <= 4 * _TOP or width > _TOP // 2
    ordered = _sorted(x) if everything else _sorted_top(x)
    columns, complete = _select(*ordered, total, scale, threshold, width, admissible)
    if not everything and not complete.all():
        rest = (~complete).nonzero()[:, 0]
        again, complete[rest] = _select(*_sorted(x[rest]), total[rest], scale, threshold, width, admissible)
        for column, replacement in zip(columns, again, strict=True):
            column[rest] = replacement
    status[(status == RowStatus.OK) & ~complete] = RowStatus.SHORT
    return PerinucleusRows(*columns, status)


def _sorted(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values, ids = torch.sort(x, dim=-1, descending=True, stable=True)
    return values, ids, torch.ones_like(ids, dtype=torch.bool)


def _sorted_top(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, V] -> logits and ids of the largest, in order, and [B, _TOP] whether nothing is missing so far.

    Some tokens that tie with the least of them may be missing, so none of these counts.
    """
    ids = x.topk(_TOP, sorted=False).indices.sort(-1).values
    values, order = torch.sort(x.gather(1, ids), dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order), values > values[:, -1:]


def _select(
    values: Tensor,
    ids: Tensor,
    whole: Tensor,
    total: Tensor,
    scale: float,
    threshold: float,
    width: int,
    admissible: Tensor | None,
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Outputs but for the status, and [B] whether these tokens hold both the nucleus and all candidates."""
    e = torch.exp(values.double() - values[:, :1].double())
    prefix = (e * scale).round().long().cumsum(-1)
    below = prefix.double() < threshold * total
    size = below.sum(-1) + 1
    last = (size - 1).clamp(max=values.shape[1] - 1)
    mass = prefix.gather(1, last[:, None])[:, 0].double() / total[:, 0]

    p = e / (total / scale)
    candidate = whole & (p > 0) & (torch.arange(values.shape[1], device=values.device) >= size[:, None])
    if admissible is not None:
        candidate &= admissible[ids]
    rank = candidate.cumsum(-1)
    # One column more than wanted takes all that is not.
    slot = torch.where(candidate & (rank <= width), rank - 1, width)
    shape = (len(values), width + 1)
    token_ids = torch.full(shape, -1, dtype=torch.int64, device=values.device).scatter_(1, slot, ids)
    probs = torch.zeros(shape, dtype=torch.float64, device=values.device).scatter_(1, slot, p)
    complete = (whole & ~below).any(-1) & (rank[:, -1] >= width)
    return (token_ids[:, :width], probs[:, :width], size, mass), complete
