"""linear_cross_entropy in tiles of plain torch, for any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .vocabulary_tiles import Best, Gradients, Head, LogSumExp, Places, exp_, tiles


def forward(
    model: tuple[Tensor, Tensor, Tensor | None], ids: Tensor, softcap: float | None, scale: float, kept: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """[N, r] z of the ids (anything for -1), best [N, r], max z [N], lse(z) - max z [N], and products [N, kept].

    model: hidden, classifier, bias.
    """
    head = Head(*model, softcap, scale, kept)
    places, best, total = Places(ids), Best(ids.shape[1]), LogSumExp()
    found = head.products.new_full(ids.shape, torch.nan, dtype=head.dtype)
    for tile in tiles(*head.shape):
        z = head.logits(tile)
        here, there = places.within(tile)
        found[there] = z[here]
        highest = z.amax(1)
        best.add(z, highest, tile.start)
        total.add(z, highest)
    top, beyond, _ = total.merge()
    return found, best.ids, top, beyond, head.products


def backward(
    grad: Tensor,
    model: tuple[Tensor, Tensor, Tensor | None, Tensor],
    ids: Tensor,
    softcap: float | None,
    scale: float,
    normaliser: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """grad: [N, r] of log p of the ids, 0 for -1. dz = onehot(grad) - (sum grad) p.

    model: hidden, classifier, bias, products.
    """
    head = Head(*model[:3], softcap, scale, products=model[3])
    places, gradients = Places(ids), Gradients(head, wanted)
    top, beyond = normaliser[:, :, None]
    share = -grad.sum(1, keepdim=True) * torch.exp(-beyond)
    for tile in tiles(*head.shape):
        z = head.logits(tile)
        slope = head.slope(z)
        here, there = places.within(tile)
        exp_(z.sub_(top)).mul_(share)
        z.index_put_(here, grad[there], accumulate=True)
        gradients.add(tile, z, slope)
    return gradients.all()
