"""fingerprint_loss in tiles of plain torch, for any device. What the sums are: fingerprint_loss_sums.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .fingerprint_loss_sums import Sums
from .vocabulary_tiles import Best, Buffer, Gradients, Head, LogSumExp, Places, exp_, tiles

HeadTensors = tuple[Tensor, Tensor, Tensor | None]
KeptHeadTensors = tuple[Tensor, Tensor, Tensor | None, Tensor]


def forward(
    model: HeadTensors, base: HeadTensors, responses: Tensor, softcap: float | None, scale: float, kept: int
) -> tuple[Sums, Tensor, Tensor, Tensor]:
    """The sums, best [N, max(r, 1)], and the products [N, kept] of both heads.

    model, base: hidden, classifier, bias.
    """
    head, base_head = Head(*model, softcap, scale, kept), Head(*base, softcap, scale, kept)
    places, best = Places(responses), Best(max(responses.shape[1], 1))
    total, others = LogSumExp(), LogSumExp()
    at_responses = head.products.new_full(responses.shape, torch.nan, dtype=head.dtype)
    difference, parts = Buffer(head, head.dtype), []
    for tile in tiles(*head.shape):
        z, b = head.logits(tile), base_head.logits(tile)
        here, there = places.within(tile)
        at_responses[there] = z[here]
        apart = torch.sub(b, z, out=difference.take(z.shape[1]))
        b[here] = -torch.inf
        highest = z.amax(1)
        best.add(z, highest, tile.start)
        total.add(z, highest)
        others.add(b, b.amax(1))
        parts.append(_weighted(b, apart))
    top, beyond, _ = total.merge()
    base_top, log_mass, weights = others.merge()
    sums = Sums(at_responses, top, beyond, base_top, log_mass, (weights * torch.stack(parts)).sum(0))
    return sums, best.ids, head.products, base_head.products


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """[N, C] twice -> [N] sum of the products, in which a weight of 0 counts for nothing, 0 times infinity too."""
    products = torch.mul(weights, values, out=values)
    found = products.sum(1)
    return found if found.isfinite().all() else products.masked_fill_(weights == 0, 0).sum(1)


def backward(
    grad: Tensor,
    grad_log_probs: Tensor,
    model: KeptHeadTensors,
    base: KeptHeadTensors,
    responses: Tensor,
    softcap: float | None,
    scale: float,
    normalisers: Tensor,
    rise: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """grad: [N] of the loss; grad_log_probs: [N, r]. dz = (grad - sum grad_log_probs) p - grad q + onehot(..).

    model, base: hidden, classifier, bias, products.
    """
    head = Head(*model[:3], softcap, scale, products=model[3])
    base_head = Head(*base[:3], softcap, scale, products=base[3])
    places, gradients = Places(responses), Gradients(head, wanted)
    top, beyond, base_top, level = normalisers[:, :, None]
    share = (grad - grad_log_probs.sum(1))[:, None] * torch.exp(-beyond)
    base_share = grad[:, None] * torch.exp(-level)
    for tile in tiles(*head.shape):
        z, b = head.logits(tile), base_head.logits(tile)
        slope = head.slope(z)
        here, there = places.within(tile)
        b.sub_(base_top)
        b[here] = rise[there]
        exp_(z.sub_(top)).mul_(share).addcmul_(exp_(b), base_share, value=-1)
        z.index_put_(here, grad_log_probs[there], accumulate=True)
        gradients.add(tile, z, slope)
    return gradients.all()
