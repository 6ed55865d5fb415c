"""Other ways to the tokens around a nucleus: the baselines of bench_perinucleus.

`top_k`, `vllm_top_p` and `flashinfer_top_p` do less or something else: they are the nearest operations that there are.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Sampler = Callable[[Tensor, float, int], Any]


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


def batched_sort(logits: Tensor, threshold: float, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, V] logits -> ids and probabilities [B, W] of the tokens after each nucleus, and the nucleus's size [B].

    One sort of all rows and one cumulative sum, in float32: what one writes instead of the published loop. A row with
    fewer than `width` tokens left repeats its last one.
    """
    ranked, order = torch.sort(logits, dim=-1, descending=True)
    probs = torch.softmax(ranked, dim=-1, dtype=torch.float32)
    size = (torch.cumsum(probs, dim=-1) < threshold).sum(dim=-1) + 1
    places = (size[:, None] + torch.arange(width, device=logits.device)).clamp(max=logits.shape[1] - 1)
    return order.gather(1, places), probs.gather(1, places), size


def top_k(logits: Tensor, threshold: float, width: int) -> Any:
    """The `width` most probable tokens, whatever the nucleus."""
    return torch.topk(logits, width, dim=-1)


def vllm_top_p(logits: Tensor, threshold: float, width: int) -> Any:
    """The logits of the nucleus, all others -inf, as vLLM's sampler makes them: float32, in place, so of a copy."""
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    share = torch.full((len(logits),), threshold, device=logits.device)
    return apply_top_k_top_p(logits.to(torch.float32, copy=True), None, share)


def flashinfer_top_p(logits: Tensor, threshold: float, width: int) -> Any:
    """The probabilities of the nucleus, all others 0, by flashinfer's softmax and its top_p_renorm_probs."""
    from flashinfer import sampling

    return sampling.top_p_renorm_probs(sampling.softmax(logits), threshold)


def other_samplers(device: str) -> dict[str, Sampler]:
    """Those that this machine has. "batched sort" gives the perinucleus, the others something near."""
    found: dict[str, Sampler] = {"batched sort": batched_sort, "torch.topk": top_k}
    if importlib.util.find_spec("vllm"):
        found["vLLM top-p"] = vllm_top_p
    if device == "cuda" and importlib.util.find_spec("flashinfer"):
        found["flashinfer top-p"] = flashinfer_top_p
    return found
