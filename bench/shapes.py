"""Sizes of named models, and logits like theirs: what every benchmark measures on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Shape(NamedTuple):
    """A model's sizes, from its published configuration."""

    vocab: int
    hidden: int
    layers: int


MODELS = {
    "SmolLM2-135M": Shape(49_152, 576, 30),
    "Mistral-7B-v0.3": Shape(32_768, 4096, 32),
    "Llama-3.2-1B": Shape(128_256, 2048, 16),
    "Llama-3.1-8B": Shape(128_256, 4096, 32),
    "Llama-3.1-70B": Shape(128_256, 8192, 80),
    "Qwen2.5-3B": Shape(151_936, 2048, 36),
    "Llama-2-7b": Shape(32_000, 4096, 32),
    "gemma-3-1b": Shape(262_144, 1152, 26),
    "gpt-oss-20b": Shape(201_088, 2880, 24),
    "gemma-3-4b": Shape(262_208, 2560, 34),
}

# Whose vocabularies sampling is measured at: 32,000 to 262,144 tokens.
VOCABULARIES = {
    name: MODELS[name].vocab for name in ("Llama-2-7b", "SmolLM2-135M", "Llama-3.1-8B", "Qwen2.5-3B", "gemma-3-1b")
}

LOGITS = ("realistic", "flat")
DISTINCT_ROWS = 16


def make_logits(kind: str, rows: int, vocab: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """[B, V] logits.

    realistic: Zipf's law. The token of rank r (from 1) has logit -a log r, plus noise of 0.3, tokens in random order;
        a rises from 1.2 to 2.5 across the rows, so that nuclei at 0.8 run from some 400 tokens to one; half of the rows
        have fewer than about 15.
    flat: normal with deviation 0.5, so that the nucleus at 0.8 holds more than half of the vocabulary.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, vocab, generator=generator)
    if kind == "flat":
        return (0.5 * noise).to(dtype)
    if kind != "realistic":
        raise ValueError(f"logits of kind {kind!r} are unknown: use one of {LOGITS}")
    exponent = 1.2 + 1.3 * torch.linspace(0, 1, rows)[:, None] ** 2
    logits = -exponent * torch.arange(1, vocab + 1).log() + 0.3 * noise
    order = torch.stack([torch.randperm(vocab, generator=generator) for _ in range(rows)])
    return logits.gather(1, order).to(dtype)


def make_batch(kind: str, rows: int, vocab: int, dtype: torch.dtype, device: str) -> Tensor:
    """[B, V] logits of which the first 16 rows come again and again: large batches are made in little time."""
    few = make_logits(kind, min(rows, DISTINCT_ROWS), vocab, dtype).to(device)
    return few.repeat(-(-rows // DISTINCT_ROWS), 1)[:rows]
