"""The published reference's sampling of first response tokens, written anew: the baseline of bench_perinucleus."""

from __future__ import annotations

import torch
from torch import Tensor


def published_perinucleus_rows(logits: Tensor, threshold: float, width: int) -> list[tuple[Tensor, Tensor]]:
    """[B, V] logits -> per row the first `width` tokens after the nucleus, and their probabilities.

    Mirrors the loop over rows in `generate_perinucleus_signatures_batched` of [SF]'s generate_finetuning_data.py: for
    each row one sort of the whole vocabulary, two softmaxes and a cumulative sum, all in the dtype of the logits. In
    the baseline's favour it leaves out the random choice, decoding the chosen token, and the loop that widens the
    window.
    """
    found = []
    for row in logits:
        sorted_logits, order = torch.sort(row, descending=True)
        cumulative = torch.cumsum(torch.softmax(sorted_logits, dim=-1), dim=-1)
        probs = torch.softmax(row, dim=-1)
        outside = torch.where(cumulative >= threshold)[0][1:]
        token_ids = order[outside[:width]]
        found.append((token_ids, probs[token_ids]))
    return found
