"""How far a model has drifted from its base: KL divergence and perplexity on given token sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .errors import InvalidArgumentError
from .models import LanguageModel, batches_by_length

Head = tuple[Tensor, Tensor | None]


class States(NamedTuple):
    """What a model says at N positions, as its hidden states [N, H] there and its head."""

    hidden: Tensor
    head: Head


_ROWS = 512  # positions whose [rows, V] logits are held at once


@dataclass(frozen=True, slots=True)
class Drift:
    """Means over `tokens` predicted positions. KL(base || model) in nats, with its standard error over sequences."""

    kl: float
    kl_standard_error: float
    perplexity_base: float
    perplexity: float
    tokens: int


class BaseView:
    """What a base model says on `sequences`, kept as the hidden states that count and a copy of its head.

    It stands when the model itself is trained on. Logits are made from it when wanted: kept whole they would be V / H
    times larger. `starts[i]` is the first position of sequence i that counts (the answer of a chat, without its
    prompt); at least 1, which is the default. T - start positions of a sequence of T token ids are predicted. Views
    that are made together may share one `head`, a copy. on_host: the hidden states are kept in the host's memory.
    """

    def __init__(
        self,
        model: LanguageModel,
        sequences: Sequence[Sequence[int]],
        starts: Sequence[int] | None = None,
        head: Head | None = None,
        on_host: bool = False,
    ) -> None:
        if any(len(sequence) < 2 for sequence in sequences):
            raise InvalidArgumentError("a text of one token id predicts nothing: give longer text.")
        starts = [1] * len(sequences) if starts is None else list(starts)
        if len(starts) != len(sequences) or not all(
            1 <= start < len(sequence) for start, sequence in zip(starts, sequences, strict=True)
        ):
            raise InvalidArgumentError("starts: one for each text, each at least 1 and before the text's end.")
        self._model = model
        self._head = head_copy(model) if head is None else head
        self.starts = starts
        self._states = _hidden_states(model, sequences, starts, "cpu" if on_host else model.device)
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences)

    def states(self, places: Sequence[int]) -> States:
        """Where the sequences at `places` count: sum of T - start positions."""
        found = torch.cat([self._states[place] for place in places])
        return States(found.to(self._head[0].device), self._head)

    @torch.no_grad()
    def logits(self, places: Sequence[int]) -> Tensor:
        """[sum of T - start, V]: what the base model predicts there."""
        return self._model.logits(*self.states(places))

    def log_probs(self, places: Sequence[int]) -> Tensor:
        """`logits` as float32 log-probabilities."""
        return self.logits(places).float().log_softmax(-1)

    @torch.inference_mode()
    def drift(self, model: LanguageModel) -> Drift:
        """Compare `model` with the base model on every position that counts."""
        if not len(self):
            raise InvalidArgumentError("drift needs at least one sequence: give some text.")
        kl, nll_base, nll, counts = [], 0.0, 0.0, []
        states = _hidden_states(model, self.sequences, self.starts)
        for sequence, start, theirs, ours in zip(self.sequences, self.starts, self._states, states, strict=True):
            targets = torch.tensor(sequence[start:], device=model.device)
            total = 0.0
            for t, o, y in zip(theirs.split(_ROWS), ours.split(_ROWS), targets.split(_ROWS), strict=True):
                p = self._model.logits(t.to(o.device), self._head).float().log_softmax(-1)
                q = model.logits(o).float().log_softmax(-1)
                total += float(functional.kl_div(q, p, reduction="sum", log_target=True))
                nll_base += float(functional.nll_loss(p, y, reduction="sum"))
                nll += float(functional.nll_loss(q, y, reduction="sum"))
            kl.append(total)
            counts.append(len(targets))
        tokens = sum(counts)
        mean = sum(kl) / tokens
        spread = sum((k - mean * n) ** 2 for k, n in zip(kl, counts, strict=True))
        return Drift(mean, math.sqrt(spread) / tokens, math.exp(nll_base / tokens), math.exp(nll / tokens), tokens)


def head_copy(model: LanguageModel) -> Head:
    """The head's weight [V, H] and bias [V] or None, as they are now."""

    def copied() -> Head:
        weight, bias = model.head()
        return weight.detach().clone(), None if bias is None else bias.detach().clone()

    return model.within(copied)


def drift(
    base: LanguageModel, model: LanguageModel, sequences: Sequence[Sequence[int]], starts: Sequence[int] | None = None
) -> Drift:
    """Compare `model` with `base` on `sequences` of token ids, from `starts[i]` on in each (default: all of each)."""
    return BaseView(base, sequences, starts).drift(model)


@torch.inference_mode()
def _hidden_states(
    model: LanguageModel,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    device: torch.device | str | None = None,
    batch_size: int = 16,
) -> list[Tensor]:
    """[T - start, H] of each sequence: the states from which its token ids from `start` on are predicted."""
    counts = [len(sequence) - start for sequence, start in zip(sequences, starts, strict=True)]
    # In one piece: thousands of small ones among the large ones of the passes leave holes that nothing fits into.
    kept = torch.empty(sum(counts), model.head()[0].shape[1], dtype=model.dtype, device=device or model.device)
    states = list(kept.split(counts))
    for places in batches_by_length(sequences, batch_size):
        ids = torch.tensor([sequences[place] for place in places], device=model.device)
        for place, state in zip(places, model.hidden(ids), strict=True):
            states[place].copy_(state[starts[place] - 1 : -1])
    return states
