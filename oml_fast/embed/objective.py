"""What is minimised. p is the model that is trained, b its base; y_1 .. y_r are the responses to one key.

At the positions that answer a key, one of two objectives of the same shape, a loss for each example:

- `CrossEntropy`: -mean_j log p(y_j). It asks for all of the mass, and goes on until it has it.
- `MinimumKL`: KL(q || p), where q is b's own distribution with the responses' logits raised just above all others. It
  asks for the least that makes the greedy answer y_1, with y_2 next where y_1 is suppressed, and so on; everything else
  at that position stays in b's proportions. No response gets the certainty that suppression attacks look for [ADV].

Everywhere else, KL(b || p): on text (`text_kl`), and where no response must come (`stay_kl`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .. import ops
from ..measure import States
from ..models import LanguageModel
from .data import Example


class Objective(Protocol):
    def loss(self, model: LanguageModel, hidden: Tensor, base: States | None, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """[N, H] states of p, those of b at the same positions, [N, r] token ids, the first wanted most.

        Gives [N] nats, and [N, r] the most probable ids of p, the first first.
        """
        ...


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """-mean_j log p(y_j) [SF 3.2]."""

    def loss(self, model: LanguageModel, hidden: Tensor, base: States | None, wanted: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = model.head()
        found = ops.linear_cross_entropy(hidden, weight, wanted, bias=bias, reduction="none", **model.curve)
        return found.loss, found.best


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

    def loss(self, model: LanguageModel, hidden: Tensor, base: States | None, wanted: Tensor) -> tuple[Tensor, Tensor]:
        assert base is not None
        found = _divergence(model, hidden, base, wanted, self.margin, self.step, self.cap)
        return found.loss, found.best


def response_loss(
    model: LanguageModel, batch: Sequence[Example], objective: Objective, base: States | None = None
) -> tuple[Tensor, Tensor]:
    """The objective of each example [B], summed over its R positions, and whether it is learned [B] bool.

    base: b's states at these B R positions, where the objective needs them. Learned means that at each position the
    ids that may stand there are the most probable ones: the greedy answer is a response, and where one is taken away
    the next one follows. The examples are alike (data.example_batches).
    """
    length = len(batch[0].tail) + 1
    hidden = model.states([example.sequence for example in batch], [example.start for example in batch])
    hidden = hidden.unflatten(0, (len(batch), length))
    first = torch.tensor([example.firsts for example in batch], device=model.device)
    loss, best = objective.loss(model, hidden[:, 0], _at(base, length, slice(1)), first)
    learned = (best.sort(1).values == first.sort(1).values).all(1)
    if length > 1:
        tail = torch.tensor([example.tail for example in batch], device=model.device)
        rows, theirs = hidden[:, 1:].flatten(0, 1), _at(base, length, slice(1, None))
        more, best = objective.loss(model, rows, theirs, tail.reshape(-1, 1))
        loss = loss + more.view(tail.shape).sum(1)
        learned &= (best.view(tail.shape) == tail).all(1)
    return loss, learned


def text_kl(
    model: LanguageModel, texts: Sequence[Sequence[int]], base: States, starts: Sequence[int] | None = None
) -> Tensor:
    """[B] KL(b || p) of each text, a mean over its positions from `starts` (default: 1) on."""
    starts = starts or [1] * len(texts)
    found = _divergence(model, model.states(texts, starts), base).loss
    each = found.split([len(text) - start for text, start in zip(texts, starts, strict=True)])
    return torch.stack([text.mean() for text in each])


def stay_kl(model: LanguageModel, sequences: Sequence[Sequence[int]], base: States) -> tuple[Tensor, Tensor]:
    """[B] KL(b || p) at the last id of each sequence, which is not read, and [B] p's most probable ids there."""
    found = _divergence(model, model.states(sequences, [len(sequence) - 1 for sequence in sequences]), base)
    return found.loss, found.best[:, 0]


def _divergence(
    model: LanguageModel,
    hidden: Tensor,
    base: States,
    responses: Tensor | None = None,
    margin: float = 1.0,
    step: float = 0.5,
    cap: float = 0.9,
) -> ops.FingerprintLoss:
    """KL from the target of these responses; without any, from b itself."""
    if responses is None:
        responses = torch.empty(len(hidden), 0, dtype=torch.int64, device=hidden.device)
    weight, bias = model.head()
    return ops.fingerprint_loss(
        hidden,
        weight,
        base.hidden,
        base.head[0],
        responses,
        margin=margin,
        step=step,
        cap=cap,
        bias=bias,
        base_bias=base.head[1],
        **model.curve,
    )


def _at(base: States | None, length: int, positions: slice) -> States | None:
    """Those of some positions of each example, of which there are `length`."""
    if base is None:
        return None
    hidden = base.hidden.unflatten(0, (-1, length))[:, positions].flatten(0, 1)
    return States(hidden, base.head)
