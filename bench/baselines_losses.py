"""Other ways to the losses of a linear head: the baselines of bench_linear_cross_entropy and bench_fingerprint_loss."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

TARGET = {"margin": 2.5, "step": 0.5, "cap": 0.9}
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(hidden: Tensor, classifier: Tensor, targets: Tensor) -> Tensor:
    """[N, H], [V, H], [N]: logits of the rows that have a target, in float32 for the loss, as transformers does it."""
    return functional.cross_entropy(functional.linear(hidden, classifier).float(), targets)


def full_logits(positions: int) -> Loss:
    """The published way: logits at every one of so many positions, of which the last has a target."""

    def loss(hidden: Tensor, classifier: Tensor, targets: Tensor) -> Tensor:
        everywhere = hidden[:, None].expand(-1, positions, -1).reshape(-1, hidden.shape[1])
        labels = torch.full((len(hidden), positions), -100, device=hidden.device)
        labels[:, -1] = targets
        return plain(everywhere, classifier, labels.flatten())

    return loss


def torch_fused(hidden: Tensor, classifier: Tensor, targets: Tensor) -> Tensor:
    """torch's own fused op, as it chooses its chunks."""
    return functional.linear_cross_entropy(hidden, classifier, targets, options=torch.nn.LinearCrossEntropyOptions())


def liger(hidden: Tensor, classifier: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss()(classifier, hidden, targets)


def cross_entropies(device: str) -> dict[str, Loss]:
    """Those of one [N, H] that this torch and this machine have; `plain` comes first."""
    found: dict[str, Loss] = {"plain": plain}
    if hasattr(functional, "linear_cross_entropy"):  # newer torch alone has it
        found["torch"] = functional.linear_cross_entropy
        found["torch, chunked"] = torch_fused
    if device == "cuda" and importlib.util.find_spec("liger_kernel"):
        found["liger"] = liger
    return found


def plain_fingerprint(
    hidden: Tensor, classifier: Tensor, base_hidden: Tensor, base_classifier: Tensor, responses: Tensor
) -> Tensor:
    """[N] KL(q || p) from whole logits of both models; q as fingerprint_loss has it."""
    with torch.no_grad():
        base = functional.linear(base_hidden, base_classifier).float().scatter(1, responses, -torch.inf)
        top = base.amax(1, keepdim=True)
        below = TARGET["step"] * torch.arange(responses.shape[1])
        free = 1 - TARGET["cap"] * float(torch.exp(-below).sum())
        below = below.to(top.device)
        margin = torch.full_like(top, TARGET["margin"])
        if free > 0:
            others = torch.logsumexp(base, 1, keepdim=True) - top
            margin = torch.minimum(margin, math.log(TARGET["cap"] / free) + others)
        log_q = base.scatter(1, responses, top + margin - below).log_softmax(1)
    log_p = functional.linear(hidden, classifier).float().log_softmax(1)
    return functional.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1)
