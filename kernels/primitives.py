"""What several kernels need. Importing this needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def ordered_bits(x):
    """float32 -> int64 in 0 .. 2^32 - 1 that rises with x. -0 and +0 are one value; NaN is the caller's to exclude."""
    # int64, because comparisons and atomics of unsigned 32-bit integers differ between Triton's targets.
    bits = (x + 0.0).to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    return tl.where(bits >= 0x80000000, 0xFFFFFFFF - bits, bits + 0x80000000)


@triton.jit
def merge_exp_sums(max_a, sum_a, max_b, sum_b):
    """(max, sum of exp(x - max)) of two sets of logits -> the same of their union. An empty set is (-inf, 0)."""
    highest = tl.maximum(max_a, max_b)
    # -inf - -inf is NaN: where both are empty, nothing is taken off.
    base = tl.where(highest == float("-inf"), 0.0, highest)
    return highest, sum_a * tl.exp(max_a - base) + sum_b * tl.exp(max_b - base)
