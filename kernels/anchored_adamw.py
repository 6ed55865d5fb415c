"""AdamW with a pull toward the base weights, one program for each block of elements.

The operations are those of oml_fast/ops/reference.py, in its order. Nothing is fused into multiply-adds, and root and
division are the correctly rounded ones, so that a GPU which rounds float32 as IEEE 754 has it gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Four elements a thread: the widest loads of float32. With more, 16-bit tensors would get a layout of their own, and
# trade elements with the others through shared memory.
BLOCK = 512
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
ROUNDS = tl.constexpr(7)  # of Philox, as in oml_fast/ops/philox.py


@triton.jit
def adamw_update(g, m, v, beta1, gain1, beta2, gain2, step_size, root_factor, eps):
    """The new moments, and what AdamW takes off the weight."""
    m = beta1 * m + gain1 * g
    v = beta2 * v + (gain2 * g) * g
    return m, v, tl.div_rn(step_size * m, tl.sqrt_rn(v) * root_factor + eps)


@triton.jit
def to_bfloat16(x, noise):
    """float32 -> bfloat16, up with the probability that makes the mean right. noise: uint32 in [0, 65535]."""
    bits = (x.to(tl.uint32, bitcast=True) + noise) >> 16
    return tl.where(x != x, 0x7FC0, bits).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def to_nearest(x, dtype: tl.constexpr):
    """float32 -> dtype, ties to even."""
    # Triton's interpreter cuts bfloat16 off.
    odd = (x.to(tl.uint32, bitcast=True) >> 16) & 1
    return to_bfloat16(x, 0x7FFF + odd) if dtype == tl.bfloat16 else x.to(dtype)


@triton.jit
def element_words(index, step, seed):
    """The two random words of each element: key (seed), counter (index // 2, step), see oml_fast/ops/philox.py."""
    zero = tl.zeros_like(index)
    a, b, c, d = tl.philox(
        seed,
        ((index >> 1) & 0xFFFFFFFF).to(tl.uint32),
        (index >> 33).to(tl.uint32),
        (zero + (step & 0xFFFFFFFF)).to(tl.uint32),
        (zero + (step >> 32)).to(tl.uint32),
        n_rounds=ROUNDS,
    )
    even = index % 2 == 0
    return tl.where(even, a, c), tl.where(even, b, d)


@triton.jit
def masters_kernel(
    change, gradient, first_moment, second_moment, base, weight,
    n,
    beta1, gain1, beta2, gain2, step_size, root_factor, eps, keep,
    WRITES_WEIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    g = tl.load(gradient + at, inside, other=0.0).to(tl.float32)
    m = tl.load(first_moment + at, inside, other=0.0)
    v = tl.load(second_moment + at, inside, other=0.0)
    m, v, update = adamw_update(g, m, v, beta1, gain1, beta2, gain2, step_size, root_factor, eps)
    changed = (tl.load(change + at, inside, other=0.0) - update) * keep
    tl.store(first_moment + at, m, inside)
    tl.store(second_moment + at, v, inside)
    tl.store(change + at, changed, inside)
    if WRITES_WEIGHT:
        moved = tl.load(base + at, inside, other=0.0).to(tl.float32) + changed
        tl.store(weight + at, to_nearest(moved, weight.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["seed", "step", "offset"])
def compact_kernel(
    gradient, first_moment, second_moment, base, weight,
    n,
    beta1, gain1, beta2, gain2, step_size, root_factor, eps, keep,
    seed, step, offset,
    BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    g = tl.load(gradient + at, inside, other=0.0).to(tl.float32)
    m = tl.load(first_moment + at, inside, other=0.0).to(tl.float32)
    v = tl.load(second_moment + at, inside, other=0.0).to(tl.float32)
    m, v, update = adamw_update(g, m, v, beta1, gain1, beta2, gain2, step_size, root_factor, eps)
    anchor = tl.load(base + at, inside, other=0.0).to(tl.float32)
    moved = anchor + ((tl.load(weight + at, inside, other=0.0).to(tl.float32) - update) - anchor) * keep
    word0, word1 = element_words(at + offset, step.to(tl.int64), seed)
    tl.store(weight + at, to_bfloat16(moved, word0 & 0xFFFF), inside)
    tl.store(first_moment + at, to_bfloat16(m, word0 >> 16), inside)
    tl.store(second_moment + at, to_bfloat16(v, word1 & 0xFFFF), inside)


def launch(
    change: Tensor | None,
    gradient: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    base: Tensor | None,
    weight: Tensor | None,
    beta1: float,
    gain1: float,
    beta2: float,
    gain2: float,
    step_size: float,
    root_factor: float,
    eps: float,
    keep: float,
    seed: int,
    step: int,
    offset: int,
) -> None:
    """One step in place on contiguous tensors of one shape, not empty; without a change in the compact layout."""
    n = gradient.numel()
    grid = (triton.cdiv(n, BLOCK),)
    scalars = (beta1, gain1, beta2, gain2, step_size, root_factor, eps, keep)
    moments = (first_moment, second_moment)
    with torch.cuda.device_of(gradient):  # nothing where that is the CPU, for the interpreter
        if change is None:
            drawn = (seed, step, offset)
            compact_kernel[grid](gradient, *moments, base, weight, n, *scalars, *drawn, BLOCK, **OPTIONS)
        else:
            arrays = (change, gradient, *moments, base, weight)
            masters_kernel[grid](*arrays, n, *scalars, base is not None, BLOCK, **OPTIONS)
