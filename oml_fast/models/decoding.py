"""Decoding in batches of sequences of one length, so that nothing is ever padded and no mask is needed.

Two sequences that share a batch never change what is computed for each other, but for rounding in the matrix products.
What all prompts of a batch begin with, a system prompt mostly, is read once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from .language_model import LanguageModel

_SHARED = 16  # a shorter beginning costs less than the copies of its keys and values


def batches_by_length(sequences: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Places in `sequences`, grouped by length, in groups of at most `batch_size`; short sequences first."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for place, sequence in enumerate(sequences):
        by_length[len(sequence)].append(place)
    for length in sorted(by_length):
        places = by_length[length]
        for start in range(0, len(places), batch_size):
            yield places[start : start + batch_size]


@torch.inference_mode()
def prefill(
    model: LanguageModel, prompts: Sequence[Sequence[int]], *, cache: bool
) -> tuple[Tensor, DynamicCache | None]:
    """Prompts of one length (B x T) -> [B, V] logits after the last token id, and the cache if it will be continued."""
    ids = torch.tensor(prompts, device=model.device)
    shared = _shared(ids) if model.reads_in_parts else 0
    past = DynamicCache() if cache or shared else None
    if shared:
        model.hidden(ids[:1, :shared], past)
        assert past is not None
        past.batch_repeat_interleave(len(ids))
    hidden = model.hidden(ids[:, shared:], past)
    return model.logits(hidden[:, -1]), past if cache else None


def _shared(ids: Tensor) -> int:
    """How many token ids all rows of [B, T] begin with; 0 where reading them once saves little. One id is left."""
    if len(ids) == 1:
        return 0
    differing = (ids != ids[0]).any(0)
    differing[-1] = True
    shared = int(differing.int().argmax())
    return shared if shared >= _SHARED else 0


def greedy(
    model: LanguageModel, logits: Tensor, cache: DynamicCache | None, length: int, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Continue with the most probable token id at each step: [B, length] ids, and [B, length] their probabilities.

    `logits` [B, V] are those of the first step, `cache` is needed for more than one; `allowed` [V] bool restricts the
    choice, not the probabilities.
    """

    def choose(logits: Tensor, step: int) -> Tensor:
        ids = logits.argmax(-1)
        if allowed is not None:
            others = (~allowed[ids]).nonzero().squeeze(1)
            if len(others):  # few or none, mostly: masking every row would cost more than the choice itself
                ids[others] = logits[others].masked_fill(~allowed, -torch.inf).argmax(-1)
        return ids

    return decode(model, logits, cache, length, choose)


def sample(
    model: LanguageModel,
    logits: Tensor,
    cache: DynamicCache,
    uniforms: Tensor,
    *,
    temperature: float,
    allowed: Tensor,
) -> tuple[Tensor, Tensor]:
    """Continue by sampling with given uniforms [B, T] in [0, 1): [B, T] ids, and [B, T] their sampling probabilities.

    Inverse distribution function over the token ids that are `allowed` [V], in float64: the uniforms alone decide.
    """
    chosen = []

    def choose(logits: Tensor, step: int) -> Tensor:
        probs = (logits.double() / temperature).masked_fill(~allowed, -torch.inf).softmax(-1)
        mass = probs.cumsum(-1)
        wanted = uniforms[:, step : step + 1].to(mass) * mass[:, -1:]
        ids = torch.searchsorted(mass, wanted, right=True).clamp_(max=mass.shape[1] - 1)
        chosen.append(probs.gather(1, ids))
        return ids.squeeze(1)

    ids, _ = decode(model, logits, cache, uniforms.shape[1], choose)
    return ids, torch.cat(chosen, 1)


@torch.inference_mode()
def decode(
    model: LanguageModel,
    logits: Tensor,
    cache: DynamicCache | None,
    length: int,
    choose: Callable[[Tensor, int], Tensor],
) -> tuple[Tensor, Tensor]:
    """Continue with the ids [B] that `choose` takes from the logits [B, V] float32 of each step: [B, length] ids, and
    [B, length] their probabilities before any choice.
    """
    ids: list[Tensor] = []
    probs: list[Tensor] = []
    for step in range(length):
        if step:
            logits = model.logits(model.hidden(ids[-1][:, None], cache)[:, -1])
        logits = logits.float()
        ids.append(choose(logits, step))
        chosen = logits.gather(1, ids[-1][:, None]).squeeze(1)
        probs.append((chosen - logits.logsumexp(-1)).exp())
    return torch.stack(ids, 1), torch.stack(probs, 1)
