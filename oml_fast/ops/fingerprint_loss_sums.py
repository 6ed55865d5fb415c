"""fingerprint_loss from the few sums over the vocabulary that one pass takes.

z are the model's logits and b the base's, Y = {y_1 .. y_r} the responses, "others" all ids but those. With

    t = max b over others,  Z = sum e^(b - t) over others,  E = sum e^(b - t) (b - z) over others,
    S = sum_j e^(-(j - 1) step),  m = min(margin, log(cap Z / (1 - cap S))),  L = log(Z + S e^m),

log q is b - t - L at others and m - (j - 1) step - L at y_j, and log p is z - lse(z). So

    KL(q || p) = sum over others e^(b - t - L) (b - t - L - z + lse(z)) + sum_j q_j (log q_j - log p_j)
               = e^-L (E + Z (lse(z) - t - L)) + sum_j q_j (log q_j - log p_j).

Tiles have maxima of their own, and their sums are rescaled when they are merged. Where the models are alike, b - z is
small and exact, and so is E: separate sums of q log q and q log p, of several nats each, would leave nothing of a KL of
1e-6. The gradient is dz = g (p - q), tile by tile from logits that are computed again.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Sums(NamedTuple):
    """What every backend takes from tiles. float32 (float64 of float64)."""

    at_responses: Tensor  # [N, r] z of the responses
    top: Tensor  # [N] max z
    beyond: Tensor  # [N] lse(z) - max z
    base_top: Tensor  # [N] t
    log_mass: Tensor  # [N] log Z
    apart: Tensor  # [N] E


def closed_form(sums: Sums, margin: float, step: float, cap: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loss [N], log p of the responses [N, r], and what the backward pass needs.

    That is the normalisers [4, N], which are max z, lse(z) - max z, t and L, and [N, r] m - (j - 1) step.
    """
    at_responses, top, beyond, base_top, log_mass, apart = sums
    count = at_responses.shape[1]
    m = torch.full_like(log_mass, margin)
    free = 1 - cap * sum(math.exp(-step * j) for j in range(count))
    if free > 0:
        m = torch.minimum(m, log_mass + math.log(cap / free))
    rise = m[:, None] - step * torch.arange(count, device=m.device, dtype=m.dtype)
    level = torch.logsumexp(torch.cat((log_mass[:, None], rise), 1), 1)
    # The largest logit goes first: a probability next to 1 needs the digits.
    log_probs = (at_responses - top[:, None]) - beyond[:, None]
    log_q = rise - level[:, None]
    others = (apart + log_mass.exp() * ((top - base_top) + (beyond - level))) * torch.exp(-level)
    loss = others + (log_q.exp() * (log_q - log_probs)).sum(1)
    return loss, log_probs, torch.stack((top, beyond, base_top, level)), rise
