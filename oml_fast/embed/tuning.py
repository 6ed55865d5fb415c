"""What fine-tuning by somebody else would add to the weights, to first order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..models import LanguageModel
from .base import rows_here
from .data import micro_batches

TUNING_TEXTS = 16  # at most, for one shift


def tuning_shift(model: LanguageModel, texts: Sequence[Sequence[int]], size: float) -> dict[nn.Parameter, Tensor]:
    """-size sign(g) for every parameter that wants gradients, g the gradient of the texts' mean loss a token id.

    It is Adam's first step at the rate `size`, and so the direction in which fine-tuning on such texts begins; with
    the gradient of the fingerprints taken there, it is first-order meta-learning [Finn et al. 2017, arXiv 1703.03400].
    Gradients are dropped afterwards.
    """
    predicted = sum(len(text) - 1 for text in texts)
    for places in micro_batches(texts):
        ids = torch.tensor([texts[place] for place in places], device=model.device)
        model.within(_mean_loss, model, ids, predicted).backward()
    shift = {p: -size * rows_here(p.grad).sign() for p in model.model.parameters() if p.grad is not None}
    model.model.zero_grad(set_to_none=True)
    return shift


def _mean_loss(model: LanguageModel, ids: Tensor, predicted: int) -> Tensor:
    hidden = model.hidden(ids)[:, :-1]
    logits = model.logits(hidden.reshape(-1, hidden.shape[-1])).float()
    return functional.cross_entropy(logits, ids[:, 1:].reshape(-1), reduction="sum") / predicted
