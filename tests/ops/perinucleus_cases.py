"""Random rows of every kind for tests of perinucleus, and a fast check of what came out.

The check is numpy in float64: it sorts values, never tokens, so that it can do thousands of large rows.
test_perinucleus holds it against reference.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BAND = 2e-7
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KINDS = ("peaky", "flat", "ties", "masked", "shifted", "steep")


@dataclass(frozen=True)
class Case:
    """Some rows [B, V] and the arguments that they go with."""

    logits: Tensor
    threshold: float
    width: int
    admissible: Tensor | None
    kind: str


def random_logits(kind: str, rows: int, vocab: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """[B, V] of one kind. Large vocabularies stay within float16's range."""
    x = torch.randn(rows, vocab, generator=generator)
    uniform = torch.rand(4, generator=generator).tolist()
    if kind == "peaky":
        x = x * 2 + 12 * torch.rand(rows, vocab, generator=generator) ** (0.2 * vocab**0.5)
    elif kind == "flat":
        x *= 0.02 + uniform[0]
    elif kind == "ties":
        x = (x * (1 + 4 * uniform[0])).round() / (1 + round(3 * uniform[1]))
    elif kind == "masked":
        x = (3 * x).masked_fill(torch.rand(rows, vocab, generator=generator) < uniform[0], -torch.inf)
        x[:, int(uniform[1] * vocab)] = 1.0
    elif kind == "shifted":
        x = 2 * x + (uniform[0] - 0.5) * 10 ** (1 + 3 * uniform[1])
    else:
        x *= 10 ** (1 + 1.5 * uniform[0])
    return x.to(dtype)


def random_mask(vocab: int, rng: np.random.Generator) -> Tensor | None:
    """None, or a mask that admits most tokens, some, hardly any, or none."""
    share = rng.choice([2.0, 2.0, 0.7, 0.1, 5 / vocab, 0.0])
    return None if share > 1 else torch.from_numpy(rng.random(vocab) < share)


def small_cases(rows: int, rng: np.random.Generator) -> Iterator[Case]:
    """At least `rows` rows with V from 7 to 5,000, thresholds from 0 to next to 1."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    while rows > 0:
        vocab = int(rng.choice([7, 13, 64, 100, 255, 256, 257, 512, 1000, int(rng.integers(7, 5000))]))
        threshold = float(rng.choice([0.0, 1e-9, 1e-3, 0.3, 0.5, 0.8, 0.8, 0.9, 0.99, rng.random()]))
        if vocab <= 100 and rng.random() < 0.1:
            threshold = float(rng.choice([0.9999, 0.99999]))
        kind = KINDS[int(rng.integers(len(KINDS)))]
        logits = random_logits(kind, 20, vocab, DTYPES[int(rng.integers(3))], generator)
        width = int(rng.choice([1, 3, min(16, vocab), min(100, vocab), vocab]))
        yield Case(logits, threshold, width, random_mask(vocab, rng), kind)
        rows -= len(logits)


def large_cases(rows: int, kind: str, rng: np.random.Generator) -> Iterator[Case]:
    """At least `rows` rows of one kind with V from 128,000 to 262,144, every dtype in turn."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    for i in range((rows + 4) // 5):
        vocab = int(rng.choice([128_000, 128_256, 128_256, 131_072, 151_936, 262_144]))
        threshold = float(rng.choice([0.0, 0.01, 0.5, 0.8, 0.8, 0.8, 0.9]))
        logits = random_logits(kind, 5, vocab, DTYPES[i % 3], generator)
        yield Case(logits, threshold, int(rng.choice([3, 16, 16, 64])), random_mask(vocab, rng), kind)


@dataclass(frozen=True)
class Expected:
    """A row's tokens in order of value, with the mass of every prefix."""

    values: NDArray[np.float32]  # falling
    prefix: NDArray[np.float64]
    probs: NDArray[np.float64]
    size: int
    sizes: range  # all nucleus sizes that are right: more than one where the boundary lies within the band


def expected_row(x: NDArray[np.float32], threshold: float) -> Expected:
    values = np.sort(x)[::-1]
    e = np.exp(values.astype(np.float64) - float(values[0]))
    probs = e / e.sum()
    prefix = np.cumsum(probs)
    size = min(int(np.searchsorted(prefix, threshold)) + 1, len(x))
    least = int(np.searchsorted(prefix, threshold - BAND)) + 1
    most = int(np.searchsorted(prefix, threshold + BAND, side="right")) + 1
    if threshold <= BAND:
        least = size = 1 if threshold == 0 else size
        most = size if threshold == 0 else most
    return Expected(values, prefix, probs, size, range(least, min(most, len(x)) + 1))


def expected_ids(
    x: NDArray[np.float32], row: Expected, size: int, width: int, mask: NDArray[np.bool_] | None
) -> list[int]:
    """The first `width` admissible ids with p > 0 after a nucleus of `size`, by partial sorts."""
    reach = 4 * width
    while True:
        last = min(size + reach, len(x)) - 1
        near = np.flatnonzero((x <= row.values[size - 1]) & (x >= row.values[last]))
        near = near[np.lexsort((near, -x[near]))]
        near = near[size - int((x > row.values[size - 1]).sum()) :]
        positive = row.probs[size : size + len(near)] > 0
        near = near[positive if mask is None else positive & mask[near]]
        if len(near) >= width or last == len(x) - 1:
            return near[:width].tolist()
        reach *= 8


def check_row(
    x: NDArray[np.float32],
    case: Case,
    token_ids: NDArray[np.int64],
    probs: NDArray[np.float64],
    size: int,
    mass: float,
    short: bool,
) -> bool:
    """Asserts that one row's output is right. Returns whether the boundary lies within the band."""
    row = expected_row(x, case.threshold)
    where = f"{case.kind} V={len(x)} {case.logits.dtype} t={case.threshold} W={case.width}"
    assert size in row.sizes, f"{where}: nucleus of {size}, right are {row.sizes}"
    ids = expected_ids(x, row, size, case.width, None if case.admissible is None else case.admissible.numpy())
    missing = case.width - len(ids)
    assert token_ids.tolist() == ids + [-1] * missing, where
    assert short == (missing > 0), where
    assert not probs[len(ids) :].any(), where
    exact = np.exp(x[ids].astype(np.float64) - float(row.values[0])) * row.probs[0]
    assert (np.abs(probs[: len(ids)] - exact) <= 5e-7 * exact + 5e-324).all(), where
    assert abs(mass - row.prefix[size - 1]) <= BAND, where
    return len(row.sizes) > 1
