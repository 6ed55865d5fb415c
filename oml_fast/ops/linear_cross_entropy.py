"""Cross-entropy of a linear head without its logits: tiles over the vocabulary, forward and backward.

`reference_losses.linear_cross_entropy` is the specification. A [N, V] tensor of logits is what a training step of a
small model spends its memory on; here each tile of logits is reduced to what is wanted of it, and the backward pass
computes it again (method: Wijmans and others, Cut Your Losses in Large-Vocabulary Language Models, arXiv 2411.09009).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends
from ..errors import InvalidArgumentError
from . import heads, linear_cross_entropy_torch, reference_losses

REDUCTIONS = ("mean", "sum", "none")


class LinearCrossEntropy(NamedTuple):
    """What is known of N rows; r ids to each, or one, where targets is [N]."""

    loss: Tensor  # [] float32, or [N] with reduction "none"; nats
    log_probs: Tensor  # [N] or [N, r] float32: log p of the targets; 0 in rows that are left out
    best: Tensor  # [N] or [N, r] int64: the ids with the largest logits, falling, ties by id rising


def linear_cross_entropy(
    hidden: Tensor,
    classifier: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    backend: str = "auto",
) -> LinearCrossEntropy:
    """[N, H] hidden states, [V, H] classifier, [N] or [N, r] targets -> -mean_j log p(target_j) of each row.

    p = softmax(softcap * tanh(scale * (hidden @ classifier.T + bias) / softcap)), without softcap of the scaled logits.
    hidden, classifier, bias [V]: one dtype of float32, bfloat16 and float16, on one device. N may be 0.
    targets: int64, 1 <= r <= V. A row that holds `ignore_index` is left out: it has loss 0, and no gradient.
    reduction: "mean" over the rows that are not left out (0 where there is none), "sum" or "none".
    backend: "auto", "reference" (float64), "torch" (any device) or "triton" (CUDA, or Triton's interpreter).

    loss and log_probs may be differentiated in hidden, classifier and bias; the results are the same from run to run.
    Logits have the precision of a matrix product in the dtype of hidden (Triton: float32), all else is float32. Values
    that are not finite make a row's loss NaN or infinite, as they would with logits. It reads the targets' values to
    check them, and so waits for a GPU. Raises InvalidArgumentError and BackendUnavailableError.
    """
    _check(hidden, classifier, targets, bias, softcap, scale, ignore_index, reduction)
    ids = targets if targets.dim() == 2 else targets[:, None]
    log_probs, best = _rows(hidden, classifier, ids, bias, softcap, float(scale), ignore_index, backend)
    counts = (ids != ignore_index).all(1)
    loss = torch.where(counts, -log_probs.mean(1), 0)
    if reduction != "none":
        loss = loss.sum()
    if reduction == "mean":
        loss = loss / counts.sum().clamp(min=1)
    if targets.dim() == 1:
        log_probs, best = log_probs[:, 0], best[:, 0]
    return LinearCrossEntropy(loss, log_probs, best)


def _check(
    hidden: Tensor,
    classifier: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    scale: float,
    ignore_index: int,
    reduction: str,
) -> None:
    heads.check_head(hidden, classifier, bias)
    heads.check_ids("targets", targets, hidden)
    shape, vocab = tuple(targets.shape), len(classifier)
    if len(shape) not in (1, 2) or shape[0] != len(hidden) or not 1 <= (*shape, 1)[1] <= vocab:
        raise InvalidArgumentError(
            f"targets has shape {shape}, hidden {tuple(hidden.shape)} and the vocabulary {vocab} ids: "
            "give each row one target, or 1 to as many as there are ids."
        )
    heads.check_curve(softcap, scale)
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int) or not -(2**63) <= ignore_index < 2**63:
        raise InvalidArgumentError(f"ignore_index is {ignore_index!r}: it must be an integer, usually below 0.")
    if reduction not in REDUCTIONS:
        raise InvalidArgumentError(f"reduction is {reduction!r}: use one of {', '.join(REDUCTIONS)}.")


def _rows(
    hidden: Tensor,
    classifier: Tensor,
    ids: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    scale: float,
    ignore_index: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if backend == "reference":
        _read(ids, len(classifier), ignore_index)
        found = reference_losses.linear_cross_entropy(hidden, classifier, ids, bias, softcap, scale, ignore_index)
        return found.log_probs.float(), found.best
    kept = heads.kept_ids(backend, 1, len(classifier), hidden, classifier, bias)
    log_probs, best, *_ = _forward(hidden, classifier, ids, bias, softcap, scale, ignore_index, kept, backend)
    return log_probs, best


def _read(ids: Tensor, vocab: int, ignore_index: int) -> Tensor:
    """The ids, checked; -1 in rows that are left out."""
    left_out = (ids == ignore_index).any(1, keepdim=True)
    way_out = f"mend them, or mark rows that are to be left out with ignore_index ({ignore_index})."
    heads.check_range("targets", ids.masked_fill(left_out, 0), vocab, way_out)
    return ids.masked_fill(left_out, -1)


def _module(backend: str, device: torch.device) -> ModuleType:
    """The one dispatch point: `forward` and `backward` of a backend."""
    if backends.resolve("linear_cross_entropy", backend, device.type) == "triton":
        from ..kernels import linear_cross_entropy as kernels

        module: ModuleType = kernels
    else:
        module = linear_cross_entropy_torch
    return module


@torch.library.custom_op("oml_fast::linear_cross_entropy", mutates_args=())
def _forward(
    hidden: Tensor,
    classifier: Tensor,
    ids: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    scale: float,
    ignore_index: int,
    kept: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log_probs [N, r], best [N, r], [2, N] max z and lse(z) - max z, and products [N, kept]."""
    ids = _read(ids, len(classifier), ignore_index)
    module = _module(backend, hidden.device)
    at_targets, best, top, beyond, products = module.forward((hidden, classifier, bias), ids, softcap, scale, kept)
    # The largest logit goes first: a probability next to 1 needs the digits.
    log_probs = ((at_targets - top[:, None]) - beyond[:, None]).where(ids >= 0, 0)
    return log_probs, best, torch.stack((top, beyond)), products


@_forward.register_fake
def _(
    hidden: Tensor,
    classifier: Tensor,
    ids: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    scale: float,
    ignore_index: int,
    kept: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    exact = torch.promote_types(hidden.dtype, torch.float32)
    normaliser = hidden.new_empty((2, len(hidden)), dtype=exact)
    products = hidden.new_empty((len(hidden), kept))
    return hidden.new_empty(ids.shape, dtype=exact), torch.empty_like(ids), normaliser, products


@torch.library.custom_op("oml_fast::linear_cross_entropy_backward", mutates_args=())
def _backward(
    grad: Tensor,
    hidden: Tensor,
    classifier: Tensor,
    ids: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    scale: float,
    ignore_index: int,
    normaliser: Tensor,
    products: Tensor,
    wanted: list[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of hidden, classifier and bias, for a grad [N, r] of log_probs; [0] where it is not wanted."""
    left_out = (ids == ignore_index).any(1, keepdim=True)
    grad, ids = grad.masked_fill(left_out, 0), ids.masked_fill(left_out, -1)
    module = _module(backend, hidden.device)
    model = hidden, classifier, bias, products
    found: tuple[Tensor, Tensor, Tensor] = module.backward(grad, model, ids, softcap, scale, normaliser, wanted)
    return found


@_backward.register_fake
def _(
    grad: Tensor,
    hidden: Tensor,
    classifier: Tensor,
    ids: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    scale: float,
    ignore_index: int,
    normaliser: Tensor,
    products: Tensor,
    wanted: list[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return heads.fake_gradients(hidden, classifier, wanted)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, classifier, ids, bias, *ctx.numbers, _, ctx.backend = inputs
    ctx.save_for_backward(hidden, classifier, ids, bias, *output[2:])
    ctx.set_materialize_grads(False)  # of the products: as large as they are


def _differentiate(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    hidden, classifier, ids, bias, normaliser, products = ctx.saved_tensors
    wanted = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
    if grad is None:
        return (None,) * 9
    head = hidden, classifier, ids, bias, *ctx.numbers
    found = _backward(grad, *head, normaliser, products, wanted, ctx.backend)
    of_hidden, of_classifier, of_bias = (g if w else None for g, w in zip(found, wanted, strict=True))
    return of_hidden, of_classifier, None, of_bias, None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
