"""What the kernels of linear_cross_entropy and fingerprint_loss share. Importing this needs Triton.

N rows, V vocabulary, H hidden, r ids to each row. A program computes one tile of logits, BLOCK_N rows and BLOCK_V ids.
In a forward kernel it leaves a few sums for each row, which `merge` puts together, so few rows keep a whole GPU busy,
too. In a backward kernel it writes the logits' gradient; of a chunk of ids two plain matrix products make what it adds
to the gradients. Nothing is added up in an order that could change from run to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# What a forward kernel leaves behind: so many rows are done at a time.
_SUMS_BYTES = 2**26
# What a chunk's gradients of logits take: enough columns to keep the matrix products at full speed.
_CHUNK_BYTES = 2**26
_NO_ID = tl.constexpr(2**31 - 1)


class Blocks(NamedTuple):
    """A launch's configuration."""

    BLOCK_N: int
    BLOCK_V: int
    BLOCK_H: int
    num_warps: int
    num_stages: int


def blocks(rows: int, dtype: torch.dtype, heads: int) -> Blocks:
    """For kernels that hold a tile of one head, or of two. Chosen for what registers hold; not yet timed on a GPU."""
    if dtype == torch.float32:
        return Blocks(16 if rows <= 16 else 64, 64, 32, 8, 2)
    return Blocks(16 if rows <= 16 else 64 if rows <= 64 else 128 // heads, 128, 64, 8, 3)


@triton.jit
def head_logits(
    hidden,
    classifier,
    bias,
    rows,
    columns,
    N,
    V,
    H,
    hidden_stride,
    classifier_stride,
    softcap,
    scale,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """[BLOCK_N, BLOCK_V] float32 logits of some rows and columns; -inf beyond the vocabulary."""
    inner = tl.arange(0, BLOCK_H)
    # Rows and ids beyond the last are the last: that takes no mask, and nobody looks at them.
    row = tl.minimum(rows, N - 1).to(tl.int64)
    column = tl.minimum(columns, V - 1).to(tl.int64)
    h = hidden + row[:, None] * hidden_stride + inner[None, :]
    w = classifier + column[None, :] * classifier_stride + inner[:, None]
    z = tl.zeros((BLOCK_N, BLOCK_V), dtype=tl.float32)
    for start in range(0, H, BLOCK_H):
        there = inner < H - start
        a = tl.load(h, mask=there[None, :], other=0.0)
        b = tl.load(w, mask=there[:, None], other=0.0)
        if UPCAST:  # the interpreter has no products of bfloat16
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        z = tl.dot(a, b, z, input_precision="ieee")
        h += BLOCK_H
        w += BLOCK_H
    if HAS_BIAS:
        z += tl.load(bias + column).to(tl.float32)[None, :]
    z *= scale
    if HAS_SOFTCAP:
        z = softcap * (1.0 - 2.0 / (tl.exp(2.0 * z / softcap) + 1.0))
    return tl.where((columns < V)[None, :], z, float("-inf"))


@triton.jit
def slope(z, softcap, scale, HAS_SOFTCAP: tl.constexpr):
    """What a gradient of logits must be multiplied by."""
    if HAS_SOFTCAP:
        bend = z / softcap
        return scale * (1.0 - bend * bend)
    return tl.zeros_like(z) + scale


@triton.jit
def exp_sum(z):
    """[BLOCK_N, BLOCK_V] -> each row's maximum, exp(z - maximum) and its sum; nothing but -inf gives (-inf, 0, 0)."""
    top = tl.max(z, 1)
    weights = tl.exp(z - tl.where(top == float("-inf"), 0.0, top)[:, None])
    return top, weights, tl.sum(weights, 1)


@triton.jit
def at(z, columns, places):
    """[BLOCK_N] the logits at one column of each row; 0 where that is none of these."""
    return tl.sum(tl.where(columns[None, :] == places[:, None], z, 0.0), 1)


@triton.jit
def within(places, columns):
    """[BLOCK_N] whether a row's column is one of these, which are consecutive."""
    return (places >= tl.min(columns, 0)) & (places <= tl.max(columns, 0))


@triton.jit
def best(z, columns, COUNT: tl.constexpr, SLOTS: tl.constexpr, BLOCK_N: tl.constexpr):
    """[BLOCK_N, SLOTS] the COUNT largest logits and their ids, by values falling and ids rising."""
    slots = tl.arange(0, SLOTS)[None, :]
    values = tl.full((BLOCK_N, SLOTS), float("-inf"), dtype=tl.float32)
    ids = tl.full((BLOCK_N, SLOTS), _NO_ID, dtype=tl.int32)
    last = tl.full((BLOCK_N,), float("inf"), dtype=tl.float32)
    last_id = tl.full((BLOCK_N,), -1, dtype=tl.int32)
    for slot in range(COUNT):
        left = (z < last[:, None]) | ((z == last[:, None]) & (columns[None, :] > last_id[:, None]))
        last = tl.max(tl.where(left, z, float("-inf")), 1)
        last_id = tl.min(tl.where(left & (z == last[:, None]), columns[None, :], _NO_ID), 1)
        values = tl.where(slots == slot, last[:, None], values)
        ids = tl.where(slots == slot, last_id[:, None], ids)
    return values, ids


def merge(tops: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[tiles, N] maxima and sums of exp beyond them -> maximum [N], log of the sum beyond it [N], weights of tiles."""
    top = tops.amax(0)
    weights = torch.exp(tops - top.clamp(min=torch.finfo(tops.dtype).min))
    return top, (weights * sums).sum(0).log(), weights


def merge_best(values: Tensor, ids: Tensor, count: int, vocab: int) -> Tensor:
    """[tiles, N, slots] each tile's largest -> [N, count] ids, by values falling and ids rising."""
    # They lie in the `count` tiles with the largest maxima, of equal ones in the first.
    tiles = values[:, :, 0].sort(dim=0, descending=True, stable=True).indices[:count].sort(dim=0).values
    at = tiles[:, :, None].expand(-1, -1, values.shape[2])
    values, ids = values.gather(0, at).movedim(0, 1).flatten(1), ids.gather(0, at).movedim(0, 1).flatten(1)
    order = values.sort(dim=1, descending=True, stable=True).indices
    # A row with NaN may lack ids. They mean nothing there, but shall be ids.
    return ids.gather(1, order)[:, :count].clamp(max=vocab - 1).long()


def row_chunks(rows: int, vocab: int, values: int, config: Blocks) -> Iterator[slice]:
    """Of rows, for a forward kernel that leaves so many numbers of a row in each tile."""
    each = max(_SUMS_BYTES // (4 * values * triton.cdiv(vocab, config.BLOCK_V)) // config.BLOCK_N, 1) * config.BLOCK_N
    for start in range(0, rows, each):
        yield slice(start, min(start + each, rows))


def constants(hidden: Tensor, bias: Tensor | None, softcap: float | None) -> dict[str, bool]:
    return {"HAS_BIAS": bias is not None, "HAS_SOFTCAP": softcap is not None, "UPCAST": hidden.device.type == "cpu"}


def rows_first(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it, whose rows are contiguous."""
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()


def on_device(tensor: Tensor) -> Any:
    """For launches: the tensor's GPU is the current one."""
    return nullcontext() if tensor.device.type == "cpu" else torch.cuda.device(tensor.device)


def gradients(
    hidden: Tensor,
    classifier: Tensor,
    wanted: Sequence[bool],
    block: int,
    logits_gradient: Callable[[Tensor, int], None],
) -> tuple[Tensor, Tensor, Tensor]:
    """Of hidden, classifier and bias, where wanted, else [0]; `logits_gradient` fills [N, C] from an id on."""
    rows, vocab = len(hidden), len(classifier)
    of_hidden, of_classifier, of_bias = wanted
    total = torch.zeros(hidden.shape if of_hidden else 0, dtype=torch.float32, device=hidden.device)
    grad_classifier = hidden.new_empty(classifier.shape if of_classifier else 0)
    grad_bias = hidden.new_empty(vocab if of_bias else 0)
    columns = min(max(_CHUNK_BYTES // (max(rows, 1) * hidden.element_size()) // block, 1) * block, vocab)
    memory = hidden.new_empty(rows * columns)
    for start in range(0, vocab, columns):
        chunk = slice(start, min(start + columns, vocab))
        dz = memory[: rows * (chunk.stop - start)].view(rows, chunk.stop - start)
        if rows:
            logits_gradient(dz, start)
        if of_bias:
            grad_bias[chunk] = dz.sum(0, dtype=torch.float32)
        if of_classifier:
            torch.mm(dz.T, hidden, out=grad_classifier[chunk])
        if of_hidden:
            total += torch.mm(dz, classifier[chunk])
    return total.to(hidden.dtype), grad_classifier, grad_bias
