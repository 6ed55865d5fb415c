"""linear_cross_entropy in Triton: a forward kernel, and one for the gradient of a chunk of logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .heads import (
    at,
    best,
    blocks,
    constants,
    exp_sum,
    gradients,
    head_logits,
    merge,
    merge_best,
    on_device,
    row_chunks,
    rows_first,
    slope,
    within,
)


@triton.jit
def forward_kernel(
    hidden,
    classifier,
    bias,
    ids,
    found,
    tops,
    sums,
    best_values,
    best_ids,
    N,
    V,
    H,
    hidden_stride,
    classifier_stride,
    softcap,
    scale,
    COUNT: tl.constexpr,
    SLOTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Of a tile of logits: those of `ids`, each row's maximum and sum of exp beyond it, and the COUNT largest."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    valid = rows < N
    z = head_logits(
        hidden, classifier, bias, rows, columns, N, V, H, hidden_stride, classifier_stride, softcap, scale,
        HAS_BIAS, HAS_SOFTCAP, UPCAST, BLOCK_N, BLOCK_V, BLOCK_H,
    )  # fmt: skip
    for j in range(COUNT):
        place = rows.to(tl.int64) * COUNT + j
        wanted = tl.load(ids + place, mask=valid, other=-1).to(tl.int32)
        tl.store(found + place, at(z, columns, wanted), mask=valid & within(wanted, columns))
    place = tl.program_id(1).to(tl.int64) * N + rows
    values, entries = best(z, columns, COUNT, SLOTS, BLOCK_N)
    slots = place[:, None] * SLOTS + tl.arange(0, SLOTS)[None, :]
    tl.store(best_values + slots, values, mask=valid[:, None])
    tl.store(best_ids + slots, entries, mask=valid[:, None])
    top, _, total = exp_sum(z)
    tl.store(tops + place, top, mask=valid)
    tl.store(sums + place, total, mask=valid)


@triton.jit
def gradient_kernel(
    hidden,
    classifier,
    bias,
    ids,
    grad,
    top,
    share,
    out,
    N,
    V,
    H,
    first,
    width,
    hidden_stride,
    classifier_stride,
    softcap,
    scale,
    COUNT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """out [N, width] = the gradient of hidden @ classifier.T + bias, at the ids from `first` on."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    places = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    columns = first + places
    valid = rows < N
    z = head_logits(
        hidden, classifier, bias, rows, columns, N, V, H, hidden_stride, classifier_stride, softcap, scale,
        HAS_BIAS, HAS_SOFTCAP, UPCAST, BLOCK_N, BLOCK_V, BLOCK_H,
    )  # fmt: skip
    highest = tl.load(top + rows, mask=valid, other=0.0)
    dz = tl.exp(z - highest[:, None]) * tl.load(share + rows, mask=valid, other=0.0)[:, None]
    for j in range(COUNT):
        place = rows.to(tl.int64) * COUNT + j
        wanted = tl.load(ids + place, mask=valid, other=-1).to(tl.int32)
        extra = tl.load(grad + place, mask=valid, other=0.0)
        dz += tl.where(columns[None, :] == wanted[:, None], extra[:, None], 0.0)
    dz *= slope(z, softcap, scale, HAS_SOFTCAP)
    where = rows.to(tl.int64)[:, None] * width + places[None, :]
    tl.store(out + where, dz.to(out.dtype.element_ty), mask=valid[:, None] & (places < width)[None, :])


def forward(
    model: tuple[Tensor, Tensor, Tensor | None], ids: Tensor, softcap: float | None, scale: float, kept: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """[N, r] z of the ids (anything for -1), best [N, r], max z [N], lse(z) - max z [N], and [N, 0]: nothing is kept.

    model: hidden, classifier, bias.
    """
    hidden, classifier, bias = rows_first(model[0]), rows_first(model[1]), model[2]
    count, vocab = ids.shape[1], len(classifier)
    config, slots = blocks(len(ids), hidden.dtype, heads=1), triton.next_power_of_2(count)
    fixed = constants(hidden, bias, softcap) | config._asdict() | {"COUNT": count, "SLOTS": slots}
    found = torch.empty(ids.shape, dtype=torch.float32, device=hidden.device)
    normaliser, chosen, ids = found.new_empty(2, len(ids)), torch.empty_like(ids), ids.contiguous()
    for chunk in row_chunks(len(ids), vocab, 2 + 2 * slots, config):
        rows, tiles = chunk.stop - chunk.start, triton.cdiv(vocab, config.BLOCK_V)
        sums, values = found.new_empty(2, tiles, rows), found.new_empty(tiles, rows, slots)
        entries = torch.empty_like(values, dtype=torch.int32)
        tensors = hidden[chunk], classifier, bias, ids[chunk], found[chunk], *sums, values, entries
        sizes = rows, vocab, hidden.shape[1], hidden.stride(0), classifier.stride(0)
        with on_device(hidden):
            forward_kernel[triton.cdiv(rows, config.BLOCK_N), tiles](*tensors, *sizes, softcap or 0.0, scale, **fixed)
        normaliser[0, chunk], normaliser[1, chunk], _ = merge(*sums)
        chosen[chunk] = merge_best(values, entries, count, vocab)
    return found, chosen, *normaliser, hidden.new_empty(len(ids), 0)


def backward(
    grad: Tensor,
    model: tuple[Tensor, Tensor, Tensor | None, Tensor],
    ids: Tensor,
    softcap: float | None,
    scale: float,
    normaliser: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """grad: [N, r] of log p of the ids, 0 for -1. dz = onehot(grad) - (sum grad) p.

    model: hidden, classifier, bias, and an empty tensor.
    """
    hidden, classifier, bias = rows_first(model[0]), rows_first(model[1]), model[2]
    rows, vocab = len(hidden), len(classifier)
    config = blocks(rows, hidden.dtype, heads=1)
    top, beyond = normaliser
    tensors = hidden, classifier, bias, ids.contiguous(), grad.contiguous(), top, -grad.sum(1) * torch.exp(-beyond)
    fixed = constants(hidden, bias, softcap) | config._asdict()

    def logits_gradient(out: Tensor, first: int) -> None:
        width = out.shape[1]
        sizes = rows, vocab, hidden.shape[1], first, width, hidden.stride(0), classifier.stride(0)
        with on_device(hidden):
            grid = triton.cdiv(rows, config.BLOCK_N), triton.cdiv(width, config.BLOCK_V)
            gradient_kernel[grid](*tensors, out, *sizes, softcap or 0.0, scale, COUNT=ids.shape[1], **fixed)

    return gradients(hidden, classifier, wanted, config.BLOCK_V, logits_gradient)
