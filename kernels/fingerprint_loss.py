"""fingerprint_loss in Triton: a forward kernel, and one for the gradient of a chunk of logits.

What the sums are is written where they are used: oml_fast/ops/fingerprint_loss_sums.py.
"""

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
    base_hidden,
    base_classifier,
    base_bias,
    responses,
    found,
    sums,
    best_values,
    best_ids,
    N,
    V,
    H,
    base_H,
    hidden_stride,
    classifier_stride,
    base_hidden_stride,
    base_classifier_stride,
    softcap,
    scale,
    COUNT: tl.constexpr,
    BEST: tl.constexpr,
    SLOTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_BASE_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Of a tile of logits: those of the responses, five sums of each row, and the model's BEST largest.

    sums [5, tiles, N]: max z, sum e^(z - max z), and of the base without the responses its maximum t, sum e^(b - t),
    and sum e^(b - t) (b - z).
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    valid = rows < N
    b = head_logits(
        base_hidden, base_classifier, base_bias, rows, columns, N, V, base_H, base_hidden_stride,
        base_classifier_stride, softcap, scale, HAS_BASE_BIAS, HAS_SOFTCAP, UPCAST, BLOCK_N, BLOCK_V, BLOCK_H,
    )  # fmt: skip
    z = head_logits(
        hidden, classifier, bias, rows, columns, N, V, H, hidden_stride, classifier_stride, softcap, scale,
        HAS_BIAS, HAS_SOFTCAP, UPCAST, BLOCK_N, BLOCK_V, BLOCK_H,
    )  # fmt: skip
    for j in range(COUNT):
        place = rows.to(tl.int64) * COUNT + j
        wanted = tl.load(responses + place, mask=valid, other=-1).to(tl.int32)
        tl.store(found + place, at(z, columns, wanted), mask=valid & within(wanted, columns))
        b = tl.where(columns[None, :] == wanted[:, None], float("-inf"), b)
    place = tl.program_id(1).to(tl.int64) * N + rows
    each = tl.num_programs(1).to(tl.int64) * N
    base_top, weights, mass = exp_sum(b)
    tl.store(sums + 2 * each + place, base_top, mask=valid)
    tl.store(sums + 3 * each + place, mass, mask=valid)
    # A weight of 0 counts for nothing, 0 times infinity too.
    tl.store(sums + 4 * each + place, tl.sum(tl.where(weights > 0, weights * (b - z), 0.0), 1), mask=valid)
    top, _, total = exp_sum(z)
    tl.store(sums + place, top, mask=valid)
    tl.store(sums + each + place, total, mask=valid)
    values, entries = best(z, columns, BEST, SLOTS, BLOCK_N)
    slots = place[:, None] * SLOTS + tl.arange(0, SLOTS)[None, :]
    tl.store(best_values + slots, values, mask=valid[:, None])
    tl.store(best_ids + slots, entries, mask=valid[:, None])


@triton.jit
def gradient_kernel(
    hidden,
    classifier,
    bias,
    base_hidden,
    base_classifier,
    base_bias,
    responses,
    rise,
    grad_log_probs,
    tops,
    shares,
    out,
    N,
    V,
    H,
    base_H,
    first,
    width,
    hidden_stride,
    classifier_stride,
    base_hidden_stride,
    base_classifier_stride,
    softcap,
    scale,
    COUNT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_BASE_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """out [N, width] = the gradient of hidden @ classifier.T + bias, at the ids from `first` on.

    tops, shares [2, N]: what is taken off the logits of the model and of the base before exp, and its factor.
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    places = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    columns = first + places
    valid = rows < N
    b = head_logits(
        base_hidden, base_classifier, base_bias, rows, columns, N, V, base_H, base_hidden_stride,
        base_classifier_stride, softcap, scale, HAS_BASE_BIAS, HAS_SOFTCAP, UPCAST, BLOCK_N, BLOCK_V, BLOCK_H,
    )  # fmt: skip
    b -= tl.load(tops + N + rows, mask=valid, other=0.0)[:, None]
    extra = tl.zeros_like(b)
    for j in range(COUNT):
        place = rows.to(tl.int64) * COUNT + j
        here = columns[None, :] == tl.load(responses + place, mask=valid, other=-1).to(tl.int32)[:, None]
        b = tl.where(here, tl.load(rise + place, mask=valid, other=0.0)[:, None], b)
        extra = tl.where(here, tl.load(grad_log_probs + place, mask=valid, other=0.0)[:, None], extra)
    extra -= tl.exp(b) * tl.load(shares + N + rows, mask=valid, other=0.0)[:, None]
    z = head_logits(
        hidden, classifier, bias, rows, columns, N, V, H, hidden_stride, classifier_stride, softcap, scale,
        HAS_BIAS, HAS_SOFTCAP, UPCAST, BLOCK_N, BLOCK_V, BLOCK_H,
    )  # fmt: skip
    p = tl.exp(z - tl.load(tops + rows, mask=valid, other=0.0)[:, None])
    dz = p * tl.load(shares + rows, mask=valid, other=0.0)[:, None] + extra
    dz *= slope(z, softcap, scale, HAS_SOFTCAP)
    where = rows.to(tl.int64)[:, None] * width + places[None, :]
    tl.store(out + where, dz.to(out.dtype.element_ty), mask=valid[:, None] & (places < width)[None, :])


def forward(
    model: tuple[Tensor, Tensor, Tensor | None],
    base: tuple[Tensor, Tensor, Tensor | None],
    responses: Tensor,
    softcap: float | None,
    scale: float,
    kept: int,
) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]:
    """The sums, in the order of fingerprint_loss_sums.Sums, best [N, max(r, 1)], and [N, 0] twice: nothing is kept.

    model, base: hidden, classifier, bias.
    """
    heads = _heads(model, base)
    hidden, count, vocab = heads[0], responses.shape[1], len(heads[1])
    wanted = max(count, 1)
    config, slots = blocks(len(hidden), hidden.dtype, heads=2), triton.next_power_of_2(wanted)
    fixed = _constants(heads, softcap) | config._asdict() | {"COUNT": count, "BEST": wanted, "SLOTS": slots}
    found = torch.empty(responses.shape, dtype=torch.float32, device=hidden.device)
    merged, chosen = found.new_empty(5, len(hidden)), responses.new_empty(len(hidden), wanted)
    for chunk in row_chunks(len(hidden), vocab, 5 + 2 * slots, config):
        rows, tiles = chunk.stop - chunk.start, triton.cdiv(vocab, config.BLOCK_V)
        sums, values = found.new_empty(5, tiles, rows), found.new_empty(tiles, rows, slots)
        entries = torch.empty_like(values, dtype=torch.int32)
        some = hidden[chunk], *heads[1:3], heads[3][chunk], *heads[4:]
        tensors = *some, responses[chunk].contiguous(), found[chunk], sums, values, entries
        sizes = rows, vocab, hidden.shape[1], heads[3].shape[1], *_strides(heads)
        with on_device(hidden):
            forward_kernel[triton.cdiv(rows, config.BLOCK_N), tiles](*tensors, *sizes, softcap or 0.0, scale, **fixed)
        top, beyond, _ = merge(sums[0], sums[1])
        base_top, log_mass, weights = merge(sums[2], sums[3])
        merged[:, chunk] = torch.stack((top, beyond, base_top, log_mass, (weights * sums[4]).sum(0)))
        chosen[chunk] = merge_best(values, entries, wanted, vocab)
    return (found, *merged), chosen, hidden.new_empty(len(hidden), 0), heads[3].new_empty(len(hidden), 0)


def backward(
    grad: Tensor,
    grad_log_probs: Tensor,
    model: tuple[Tensor, Tensor, Tensor | None, Tensor],
    base: tuple[Tensor, Tensor, Tensor | None, Tensor],
    responses: Tensor,
    softcap: float | None,
    scale: float,
    normalisers: Tensor,
    rise: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """grad: [N] of the loss; grad_log_probs: [N, r]. dz = (grad - sum grad_log_probs) p - grad q + onehot(..).

    model, base: hidden, classifier, bias, and an empty tensor.
    """
    heads = _heads(model[:3], base[:3])
    hidden, classifier, rows = heads[0], heads[1], len(grad)
    config = blocks(rows, hidden.dtype, heads=2)
    top, beyond, base_top, level = normalisers
    tops = torch.stack((top, base_top))
    shares = torch.stack((grad - grad_log_probs.sum(1), grad)) * torch.exp(-torch.stack((beyond, level)))
    tensors = *heads, responses.contiguous(), rise.contiguous(), grad_log_probs.contiguous(), tops, shares
    fixed = _constants(heads, softcap) | config._asdict() | {"COUNT": responses.shape[1]}

    def logits_gradient(out: Tensor, first: int) -> None:
        width = out.shape[1]
        sizes = rows, len(classifier), hidden.shape[1], heads[3].shape[1], first, width
        with on_device(hidden):
            grid = triton.cdiv(rows, config.BLOCK_N), triton.cdiv(width, config.BLOCK_V)
            gradient_kernel[grid](*tensors, out, *sizes, *_strides(heads), softcap or 0.0, scale, **fixed)

    return gradients(hidden, classifier, wanted, config.BLOCK_V, logits_gradient)


def _heads(
    model: tuple[Tensor, Tensor, Tensor | None], base: tuple[Tensor, Tensor, Tensor | None]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor | None]:
    return rows_first(model[0]), rows_first(model[1]), model[2], rows_first(base[0]), rows_first(base[1]), base[2]


def _strides(heads: tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor | None]) -> tuple[int, int, int, int]:
    return heads[0].stride(0), heads[1].stride(0), heads[3].stride(0), heads[4].stride(0)


def _constants(
    heads: tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor | None], softcap: float | None
) -> dict[str, bool]:
    return constants(heads[0], heads[2], softcap) | {"HAS_BASE_BIAS": heads[5] is not None}
