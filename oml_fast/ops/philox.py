"""Random words that are a function of a counter and a key: Philox 4x32, in torch's int64.

[Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011]. With 7 rounds it passes all of
TestU01's BigCrush (10 is the authors' default, with a margin), which is more than rounding asks for. Nothing is kept
between calls, so shards and threads draw what the whole would have drawn; C++ and Triton compute the same words.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 7  # also in csrc/anchored_adamw_isa.cpp and kernels/anchored_adamw.py
_WORD = 0xFFFFFFFF
_FACTORS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: tuple[Tensor, ...], key: tuple[int, int], rounds: int = ROUNDS) -> tuple[Tensor, ...]:
    """Four int64 tensors of words in [0, 2^32), which broadcast, and a key of two such words -> four random words."""
    c0, c1, c2, c3 = counter
    key0, key1 = key
    for _ in range(rounds):
        high0, low0 = _product(_FACTORS[0], c0)
        high1, low1 = _product(_FACTORS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + _KEY_STEPS[0]) & _WORD, (key1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def words_of(number: int) -> tuple[int, int]:
    """A number in [0, 2^64) as its low and its high word."""
    return number & _WORD, number >> 32


def element_words(first: int, count: int, step: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two [count] random words for elements first, first + 1, ... in a step.

    The key is the seed, the counter (index // 2, step): of its four words even indices take the first two.
    """
    index = torch.arange(first, first + count, dtype=torch.int64, device=device)
    low, high = (torch.full_like(index, word) for word in words_of(step))
    a, b, c, d = philox4x32((index >> 1 & _WORD, index >> 33, low, high), words_of(seed))
    even = index % 2 == 0
    return torch.where(even, a, c), torch.where(even, b, d)


def _product(factor: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low word of a product of 64 bits, by halves of the factor: int64 has no sign bit to spare."""
    low, high = word * (factor & 0xFFFF), word * (factor >> 16)
    return (high + (low >> 16)) >> 16, (low + ((high & 0xFFFF) << 16)) & _WORD
