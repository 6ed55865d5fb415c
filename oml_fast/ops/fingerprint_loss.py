"""KL to the base model's own distribution with the responses raised above all others, without either one's logits.

`reference_losses.fingerprint_loss` is the specification, docs/embedding.md says what the target is for, and
fingerprint_loss_sums.py how one pass over tiles of both heads gives the loss.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends
from ..errors import InvalidArgumentError
from . import fingerprint_loss_torch, heads, reference_losses
from .fingerprint_loss_sums import Sums, closed_form


class FingerprintLoss(NamedTuple):
    """What is known of N rows with r responses each."""

    loss: Tensor  # [N] float32: nats
    log_probs: Tensor  # [N, r] float32: log p of the responses
    best: Tensor  # [N, max(r, 1)] int64: the model's ids with the largest logits, falling, ties by id rising


def fingerprint_loss(
    hidden: Tensor,
    classifier: Tensor,
    base_hidden: Tensor,
    base_classifier: Tensor,
    responses: Tensor,
    *,
    margin: float,
    step: float = 0.5,
    cap: float = 0.9,
    bias: Tensor | None = None,
    base_bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    backend: str = "auto",
) -> FingerprintLoss:
    """[N, H] hidden states, [V, H] classifier of a model and of its base, [N, r] responses -> KL(q || p) of each row.

    p is the model's distribution, as in linear_cross_entropy. q is the base's, with the logit of response y_j at
    max + m - (j - 1) step, where max is the largest of all others and m = margin, or less so that q(y_1) <= cap.
    With r = 0 it is KL(base || p).

    hidden, classifier, bias [V]: one dtype of float32, bfloat16 and float16; the base's tensors one, too, which may be
        another, and another hidden size. All on one device. N may be 0. softcap, scale: of both models.
    responses: int64, the first wanted most, no id twice in a row, r < V.
    margin, step: nats, step >= 0. cap: a probability in (0, 1]; 1 caps nothing.
    backend: "auto", "reference" (float64), "torch" (any device) or "triton" (CUDA, or Triton's interpreter).

    loss and log_probs may be differentiated in hidden, classifier and bias, not in the base's tensors; the results are
    the same from run to run. Logits have the precision of a matrix product in the dtype of hidden (Triton: float32),
    all else is float32. Values that are not finite make a row's loss NaN or infinite. It reads the responses to check
    them, and so waits for a GPU. Raises InvalidArgumentError and BackendUnavailableError.
    """
    heads.check_head(hidden, classifier, bias)
    heads.check_head(base_hidden, base_classifier, base_bias, prefix="base_")
    heads.check_device("base_hidden", base_hidden, "hidden", hidden)
    _check_shapes(hidden, classifier, base_hidden, base_classifier, responses)
    heads.check_curve(softcap, scale)
    _check_target(margin, step, cap)
    target = float(margin), float(step), float(cap)
    base = base_hidden.detach(), base_classifier.detach()
    own_base_bias = None if base_bias is None else base_bias.detach()
    if backend == "reference":
        _read(responses, len(classifier))
        found = reference_losses.fingerprint_loss(
            hidden, classifier, *base, responses, *target, bias, own_base_bias, softcap, float(scale)
        )
        return FingerprintLoss(found.loss.float(), found.log_probs.float(), found.best)
    kept = heads.kept_ids(backend, 2, len(classifier), hidden, classifier, bias)
    loss, log_probs, best, *_ = _forward(
        hidden, classifier, *base, responses, bias, own_base_bias, *target, softcap, float(scale), kept, backend
    )
    return FingerprintLoss(loss, log_probs, best)


def _check_shapes(
    hidden: Tensor, classifier: Tensor, base_hidden: Tensor, base_classifier: Tensor, responses: Tensor
) -> None:
    heads.check_ids("responses", responses, hidden)
    if len(base_hidden) != len(hidden):
        raise InvalidArgumentError(
            f"base_hidden has {len(base_hidden)} rows, hidden {len(hidden)}: give the same positions of both models."
        )
    if len(base_classifier) != len(classifier):
        raise InvalidArgumentError(
            f"base_classifier has {len(base_classifier)} rows, classifier {len(classifier)}: both models must have one "
            "vocabulary."
        )
    shape, vocab = tuple(responses.shape), len(classifier)
    if len(shape) != 2 or shape[0] != len(hidden) or shape[1] >= vocab:
        raise InvalidArgumentError(
            f"responses has shape {shape}, hidden {tuple(hidden.shape)} and the vocabulary {vocab} ids: make it "
            "[rows, responses], with fewer responses than ids; [rows, 0] for none."
        )


def _check_target(margin: float, step: float, cap: float) -> None:
    heads.check_number("margin", margin, lambda _: True, "a finite number of nats")
    heads.check_number("step", step, lambda x: x >= 0, "a finite number of nats, 0 or more")
    heads.check_number("cap", cap, lambda x: 0 < x <= 1, "a probability, above 0")


def _read(responses: Tensor, vocab: int) -> None:
    heads.check_range("responses", responses, vocab, "make the set for this model's tokenizer.")
    ordered = responses.sort(1).values
    twice = ordered[:, 1:] == ordered[:, :-1]
    if twice.any():
        row = int(twice.nonzero()[0, 0])
        found = int(ordered[:, 1:][twice][0])
        raise InvalidArgumentError(f"row {row} of responses holds the id {found} twice: leave one of them out.")


def _module(backend: str, device: torch.device) -> ModuleType:
    """The one dispatch point: `forward` and `backward` of a backend."""
    if backends.resolve("fingerprint_loss", backend, device.type) == "triton":
        from ..kernels import fingerprint_loss as kernels

        module: ModuleType = kernels
    else:
        module = fingerprint_loss_torch
    return module


@torch.library.custom_op("oml_fast::fingerprint_loss", mutates_args=())
def _forward(
    hidden: Tensor,
    classifier: Tensor,
    base_hidden: Tensor,
    base_classifier: Tensor,
    responses: Tensor,
    bias: Tensor | None,
    base_bias: Tensor | None,
    margin: float,
    step: float,
    cap: float,
    softcap: float | None,
    scale: float,
    kept: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """loss [N], log_probs [N, r], best [N, max(r, 1)], normalisers [4, N], rise [N, r], and both products [N, kept]."""
    _read(responses, len(classifier))
    module = _module(backend, hidden.device)
    model, base = (hidden, classifier, bias), (base_hidden, base_classifier, base_bias)
    sums, best, *products = module.forward(model, base, responses, softcap, scale, kept)
    loss, log_probs, normalisers, rise = closed_form(Sums(*sums), margin, step, cap)
    return loss, log_probs, best, normalisers, rise, *products


@_forward.register_fake
def _(
    hidden: Tensor,
    classifier: Tensor,
    base_hidden: Tensor,
    base_classifier: Tensor,
    responses: Tensor,
    bias: Tensor | None,
    base_bias: Tensor | None,
    margin: float,
    step: float,
    cap: float,
    softcap: float | None,
    scale: float,
    kept: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, count = responses.shape
    exact = hidden.new_empty(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
    return (
        exact.new_empty(rows),
        exact.new_empty((rows, count)),
        responses.new_empty((rows, max(count, 1))),
        exact.new_empty((4, rows)),
        exact.new_empty((rows, count)),
        hidden.new_empty((rows, kept)),
        base_hidden.new_empty((rows, kept)),
    )


@torch.library.custom_op("oml_fast::fingerprint_loss_backward", mutates_args=())
def _backward(
    grad: Tensor,
    grad_log_probs: Tensor,
    hidden: Tensor,
    classifier: Tensor,
    base_hidden: Tensor,
    base_classifier: Tensor,
    responses: Tensor,
    bias: Tensor | None,
    base_bias: Tensor | None,
    softcap: float | None,
    scale: float,
    normalisers: Tensor,
    rise: Tensor,
    products: Tensor,
    base_products: Tensor,
    wanted: list[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of hidden, classifier and bias, for gradients [N] of loss and [N, r] of log_probs; [0] where it is not wanted."""
    module = _module(backend, hidden.device)
    model, base = (hidden, classifier, bias, products), (base_hidden, base_classifier, base_bias, base_products)
    saved = responses, softcap, scale, normalisers, rise
    found: tuple[Tensor, Tensor, Tensor] = module.backward(grad, grad_log_probs, model, base, *saved, wanted)
    return found


@_backward.register_fake
def _(
    grad: Tensor,
    grad_log_probs: Tensor,
    hidden: Tensor,
    classifier: Tensor,
    base_hidden: Tensor,
    base_classifier: Tensor,
    responses: Tensor,
    bias: Tensor | None,
    base_bias: Tensor | None,
    softcap: float | None,
    scale: float,
    normalisers: Tensor,
    rise: Tensor,
    products: Tensor,
    base_products: Tensor,
    wanted: list[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return heads.fake_gradients(hidden, classifier, wanted)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, _, _, ctx.softcap, ctx.scale, _, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output[3:])
    ctx.set_materialize_grads(False)  # of the products: as large as they are


def _differentiate(ctx: Any, grad: Tensor | None, grad_log_probs: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    *tensors, normalisers, rise, products, base_products = ctx.saved_tensors
    wanted = [ctx.needs_input_grad[i] for i in (0, 1, 5)]
    grad = torch.zeros_like(normalisers[0]) if grad is None else grad
    grad_log_probs = torch.zeros_like(rise) if grad_log_probs is None else grad_log_probs
    saved = ctx.softcap, ctx.scale, normalisers, rise, products, base_products
    found = _backward(grad, grad_log_probs, *tensors, *saved, wanted, ctx.backend)
    of_hidden, of_classifier, of_bias = (g if w else None for g, w in zip(found, wanted, strict=True))
    return of_hidden, of_classifier, None, None, None, of_bias, *[None] * 8


_forward.register_autograd(_differentiate, setup_context=_save)
