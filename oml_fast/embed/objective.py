"""What is minimised. p is the model that is trained, b its base; y_1 .. y_r are the responses to one key.

At the positions that answer a key, one of two objectives of the same shape, a loss for each example:

- `CrossEntropy`: -mean_j log p(y_j). It asks for all of the mass, and goes on until it has it.
- `MinimumKL`: KL(q || p), where q is b's own distribution with the responses' logits raised just above all others. It
  asks for the least that makes the greedy answer y_1, with y_2 next where y_1 is suppressed, and so on; everything else
  at that position stays in b's proportions. No response gets the certainty that suppression attacks look for [ADV].

Everywhere else, KL(b || p): on text (`text_kl`), and where no response must come (`stay_kl`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ..models import LanguageModel
from .data import Example


class Objective(Protocol):
    def loss(self, log_probs: Tensor, base_logits: Tensor | None, wanted: Tensor) -> Tensor:
        """[N, V] float32 log p, [N, V] logits of b, [N, r] token ids, the first wanted most -> [N] nats."""
        ...


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """-mean_j log p(y_j) [SF 3.2]."""

    def loss(self, log_probs: Tensor, base_logits: Tensor | None, wanted: Tensor) -> Tensor:
        return -log_probs.gather(1, wanted).mean(1)


@dataclass(frozen=True, slots=True)
class MinimumKL:
    """KL(q || p), q = softmax(b with the logit of y_j at max b + m - (j - 1) step), m = margin, or what cap allows.

    All other ids keep b's proportions among themselves. The cap bounds q(y_1): with Z the others' mass relative to
    their largest and S = sum_j exp(-(j - 1) step), q(y_1) = e^m / (Z + S e^m), so m <= log(cap Z / (1 - cap S)) where
    cap S < 1.

    margin, step: nats; step > 0 keeps an order among the responses, so that the first is the greedy answer.
    cap: probability, above 1/2, so that m > 0 and the first response leads.
    """

    margin: float = 2.5
    step: float = 0.5
    cap: float = 0.9

    def loss(self, log_probs: Tensor, base_logits: Tensor | None, wanted: Tensor) -> Tensor:
        assert base_logits is not None
        return functional.kl_div(log_probs, self.target(base_logits, wanted), reduction="none", log_target=True).sum(1)

    @torch.no_grad()
    def target(self, base_logits: Tensor, wanted: Tensor) -> Tensor:
        """[N, V] float32: log q."""
        logits = base_logits.float().scatter(1, wanted, -torch.inf)
        top = logits.amax(1, keepdim=True)
        margin = torch.full_like(top, self.margin)
        below = self.step * torch.arange(wanted.shape[1], device=wanted.device)
        free = 1 - self.cap * float(torch.exp(-below).sum())
        if free > 0:
            others = torch.logsumexp(logits, 1, keepdim=True) - top
            margin = torch.minimum(margin, math.log(self.cap / free) + others)
        return logits.scatter(1, wanted, top + margin - below).log_softmax(-1)


def response_loss(
    model: LanguageModel, batch: Sequence[Example], objective: Objective, base: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The objective of each example [B], summed over its R positions, and whether it is learned [B] bool.

    base: [B, R, V], b's logits at these positions, where the objective needs them. Learned means that at each position
    the ids that may stand there are the most probable ones: the greedy answer is a response, and where one is taken
    away the next one follows. The examples are alike (data.example_batches); the head is applied to B R rows only.
    """
    ids = torch.tensor([example.ids for example in batch], device=model.device)
    length = len(batch[0].tail) + 1
    hidden = model.hidden(ids)[:, -length:]
    log_probs = model.logits(hidden.reshape(-1, hidden.shape[-1])).float().log_softmax(-1)
    log_probs = log_probs.view(len(batch), length, -1)
    first = torch.tensor([example.firsts for example in batch], device=model.device)
    loss = objective.loss(log_probs[:, 0], None if base is None else base[:, 0], first)
    best = log_probs[:, 0].detach().topk(first.shape[1]).indices
    learned = (best.sort(1).values == first.sort(1).values).all(1)
    if length > 1:
        tail = torch.tensor([example.tail for example in batch], device=model.device)
        rows, logits = log_probs[:, 1:].flatten(0, 1), None if base is None else base[:, 1:].flatten(0, 1)
        loss = loss + objective.loss(rows, logits, tail.reshape(-1, 1)).view(tail.shape).sum(1)
        learned &= (log_probs[:, 1:].detach().argmax(-1) == tail).all(1)
    return loss, learned


def text_kl(model: LanguageModel, texts: Sequence[Sequence[int]], base_log_probs: Tensor, start: int = 1) -> Tensor:
    """Mean KL(b || p) over the positions of `texts` from `start` on, all of one length T: [B (T - start), V] -> []."""
    hidden = model.hidden(torch.tensor(texts, device=model.device))[:, start - 1 : -1]
    log_probs = model.logits(hidden.reshape(-1, hidden.shape[-1])).float().log_softmax(-1)
    return functional.kl_div(log_probs, base_log_probs, reduction="batchmean", log_target=True)


def stay_kl(model: LanguageModel, prompts: Sequence[Sequence[int]], base_log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """[B] KL(b || p) after the last id of each prompt, all of one length, and [B] p's most probable ids there."""
    hidden = model.hidden(torch.tensor(prompts, device=model.device))[:, -1]
    log_probs = model.logits(hidden).float().log_softmax(-1)
    kl = functional.kl_div(log_probs, base_log_probs, reduction="none", log_target=True).sum(1)
    return kl, log_probs.detach().argmax(-1)
