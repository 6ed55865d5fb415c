"""The specification of the two losses: plain torch in float64, slow and obvious, differentiated by autograd."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class LinearCrossEntropyRows(NamedTuple):
    """What every backend of linear_cross_entropy returns. A row that is left out has log p = 0."""

    log_probs: Tensor  # [N, r]
    best: Tensor  # [N, r] int64


class FingerprintLossRows(NamedTuple):
    """What every backend of fingerprint_loss returns."""

    loss: Tensor  # [N]
    log_probs: Tensor  # [N, r]
    best: Tensor  # [N, max(r, 1)] int64


def head_logits(hidden: Tensor, classifier: Tensor, bias: Tensor | None, softcap: float | None, scale: float) -> Tensor:
    """[N, H], [V, H], [V] -> [N, V] float64: the scale comes first, then the soft cap."""
    z = hidden.double() @ classifier.double().T
    if bias is not None:
        z = z + bias.double()
    z = scale * z
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def best_ids(z: Tensor, count: int) -> Tensor:
    """[N, V] -> [N, count]: the ids of the largest, falling, ties by id rising."""
    return torch.sort(z.detach(), dim=1, descending=True, stable=True).indices[:, :count]


def linear_cross_entropy(
    hidden: Tensor,
    classifier: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    scale: float,
    ignore_index: int,
) -> LinearCrossEntropyRows:
    """log p of the targets [N, r], and the r most probable ids; a row that holds `ignore_index` is left out."""
    z = head_logits(hidden, classifier, bias, softcap, scale)
    counts = (targets != ignore_index).all(1, keepdim=True)
    log_probs = z.log_softmax(1).gather(1, torch.where(counts, targets, 0))
    return LinearCrossEntropyRows(torch.where(counts, log_probs, 0.0), best_ids(z, targets.shape[1]))


def fingerprint_loss(
    hidden: Tensor,
    classifier: Tensor,
    base_hidden: Tensor,
    base_classifier: Tensor,
    responses: Tensor,
    margin: float,
    step: float,
    cap: float,
    bias: Tensor | None,
    base_bias: Tensor | None,
    softcap: float | None,
    scale: float,
) -> FingerprintLossRows:
    """KL(q || p) of each row, q the base's distribution with the responses raised above all others."""
    z = head_logits(hidden, classifier, bias, softcap, scale)
    with torch.no_grad():
        base = head_logits(base_hidden, base_classifier, base_bias, softcap, scale)
        log_q = raised(base, responses, margin, step, cap).log_softmax(1)
        q = log_q.exp()
    log_p = z.log_softmax(1)
    loss = torch.where(q == 0, 0.0, q * (log_q - log_p)).sum(1)
    return FingerprintLossRows(loss, log_p.gather(1, responses), best_ids(z, max(responses.shape[1], 1)))


def raised(base: Tensor, responses: Tensor, margin: float, step: float, cap: float) -> Tensor:
    """[N, V] logits, [N, r] ids y_1 .. y_r -> the logits with that of y_j at max + m - (j - 1) step, max that of all
    others; m = margin, or less where the cap on q(y_1) asks for it: cap = e^m / (Z + S e^m), where Z is the others'
    mass relative to their largest and S = sum_j exp(-(j - 1) step).
    """
    others = base.scatter(1, responses, -torch.inf)
    top = others.amax(1, keepdim=True)
    mass = torch.exp(others - top).sum(1, keepdim=True)
    below = step * torch.arange(responses.shape[1], device=base.device)
    free = 1 - cap * float(torch.exp(-below.double()).sum())
    m = torch.full_like(top, margin)
    if free > 0:
        m = torch.minimum(m, math.log(cap / free) + mass.log())
    return base.scatter(1, responses, top + m - below)
