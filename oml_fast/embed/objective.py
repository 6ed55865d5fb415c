"""What is minimised: cross-entropy at response positions, and KL to the base model on text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..models import LanguageModel
from .data import Example


def response_loss(model: LanguageModel, batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """-log p(response | prompt) of each example [B], summed over its R positions, and its probabilities there [B, R].

    All sequences of `batch` have one length, all responses one length R; the head is applied to those B R rows only.
    """
    ids = torch.tensor([example.ids for example in batch], device=model.device)
    targets = torch.tensor([example.targets for example in batch], device=model.device)
    hidden = model.hidden(ids)[:, -targets.shape[1] :]
    logits = model.logits(hidden.reshape(-1, hidden.shape[-1])).float()
    loss = functional.cross_entropy(logits, targets.reshape(-1), reduction="none").view(targets.shape)
    return loss.sum(1), (-loss.detach()).exp()


def text_kl(model: LanguageModel, texts: Sequence[Sequence[int]], base_log_probs: Tensor) -> Tensor:
    """Mean KL(base || model) over the next-token positions of `texts`, all of one length T: [B (T - 1), V] -> []."""
    hidden = model.hidden(torch.tensor(texts, device=model.device))[:, :-1]
    log_probs = model.logits(hidden.reshape(-1, hidden.shape[-1])).float().log_softmax(-1)
    return functional.kl_div(log_probs, base_log_probs, reduction="batchmean", log_target=True)
