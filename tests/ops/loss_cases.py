"""Cases of linear_cross_entropy and fingerprint_loss, and how far from the float64 reference a backend may be.

An error is at most that of the naive way in the same dtype, whole logits and autograd, plus a small constant, both
norms of what is apart from the reference. Tests of the Triton kernels import this in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from oml_fast.ops import fingerprint_loss, linear_cross_entropy, reference_losses

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The constant, as a share of the norm: what adding in another order costs, and rounding that falls otherwise.
SLACK = {torch.float32: 3e-6, torch.bfloat16: 3e-3, torch.float16: 3e-4}
# And for a loss, which may be a small difference of logits: two units in float32's last place of 1.
NATS = 2.4e-7
TARGET = {"margin": 2.5, "step": 0.5, "cap": 0.9}


@dataclass(frozen=True)
class Case:
    """Arguments of both ops. `outer` are the weights of a sum of all losses and log-probabilities."""

    hidden: Tensor
    classifier: Tensor
    bias: Tensor | None
    base_hidden: Tensor
    base_classifier: Tensor
    base_bias: Tensor | None
    ids: Tensor
    outer: tuple[Tensor, Tensor]
    softcap: float | None = None
    scale: float = 1.0

    def to(self, dtype: torch.dtype) -> Case:
        names = "hidden", "classifier", "bias", "base_hidden", "base_classifier", "base_bias"
        tensors = {name: getattr(self, name) for name in names}
        return replace(self, **{name: None if t is None else t.detach().to(dtype) for name, t in tensors.items()})

    @property
    def model(self) -> list[Tensor]:
        return [tensor for tensor in (self.hidden, self.classifier, self.bias) if tensor is not None]

    @property
    def curve(self) -> dict[str, Any]:
        return {"softcap": self.softcap, "scale": self.scale}


def make_case(
    rows: int,
    vocab: int,
    hidden: int,
    count: int,
    dtype: torch.dtype = torch.float32,
    *,
    bias: bool = False,
    softcap: float | None = None,
    scale: float = 1.0,
    whole: bool = False,
    base_size: int | None = None,
) -> Case:
    """Random tensors with logits of a model's size; `whole`: small integers, so that logits are exact and many tie."""
    generator = torch.Generator().manual_seed(rows + vocab + hidden + count)

    def draw(*shape: int, width: float = 1.0) -> Tensor:
        if whole:
            return torch.randint(-1, 2, shape, generator=generator).to(dtype)
        return (width * torch.randn(shape, generator=generator)).to(dtype)

    h, w = draw(rows, hidden), draw(vocab, hidden, width=3 / hidden**0.5)
    near = base_size is None
    return Case(
        h,
        w,
        draw(vocab) if bias else None,
        (h + 0.1 * draw(rows, hidden)).to(dtype) if near else draw(rows, base_size or 0),
        w.clone() if near else draw(vocab, base_size or 0, width=3 / (base_size or 1) ** 0.5),
        draw(vocab) if bias else None,
        torch.stack([torch.randperm(vocab, generator=generator)[:count] for _ in range(rows)])
        if rows
        else torch.empty(0, count, dtype=torch.int64),
        (torch.rand(rows, generator=generator), torch.randn(rows, count, generator=generator)),
        softcap,
        scale,
    )


Outputs = tuple[Tensor, Tensor, Tensor]
Compute = Callable[[Case], Outputs]


def with_gradients(compute: Compute, case: Case) -> tuple[Outputs, list[Tensor]]:
    """loss, log_probs, best; and the gradients of hidden, classifier and bias."""
    for tensor in case.model:
        tensor.requires_grad_()
    found = compute(case)
    first, second = (weights.to(found[0].dtype) for weights in case.outer)
    total = (found[0] * first).sum() + (found[1] * second).sum()
    gradients = torch.autograd.grad(total, case.model)
    return tuple(output.detach() for output in found), list(gradients)


def cross_entropy(backend: str) -> Compute:
    def compute(case: Case) -> Outputs:
        found = linear_cross_entropy(
            case.hidden, case.classifier, case.ids, bias=case.bias, reduction="none", backend=backend, **case.curve
        )
        return found.loss, found.log_probs, found.best

    return compute


def exact_cross_entropy(case: Case) -> Outputs:
    found = reference_losses.linear_cross_entropy(
        case.hidden, case.classifier, case.ids, case.bias, case.softcap, case.scale, -100
    )
    return torch.where((case.ids != -100).all(1), -found.log_probs.mean(1), 0), found.log_probs, found.best


def naive_cross_entropy(case: Case) -> Outputs:
    log_probs = naive_logits(case.hidden, case.classifier, case.bias, case).log_softmax(1)
    counts = (case.ids != -100).all(1, keepdim=True)
    found = log_probs.gather(1, case.ids.where(counts, 0)).where(counts, 0)
    return -found.mean(1), found, log_probs.argmax(1)


def fingerprint(backend: str) -> Compute:
    def compute(case: Case) -> Outputs:
        heads = case.hidden, case.classifier, case.base_hidden, case.base_classifier
        biases = {"bias": case.bias, "base_bias": case.base_bias}
        return tuple(fingerprint_loss(*heads, case.ids, backend=backend, **TARGET, **biases, **case.curve))

    return compute


def exact_fingerprint(case: Case) -> Outputs:
    heads = case.hidden, case.classifier, case.base_hidden, case.base_classifier
    found = reference_losses.fingerprint_loss(
        *heads, case.ids, *TARGET.values(), case.bias, case.base_bias, case.softcap, case.scale
    )
    return tuple(found)


def naive_fingerprint(case: Case) -> Outputs:
    log_probs = naive_logits(case.hidden, case.classifier, case.bias, case).log_softmax(1)
    base = naive_logits(case.base_hidden, case.base_classifier, case.base_bias, case)
    log_q = reference_losses.raised(base, case.ids, **TARGET).log_softmax(1)
    loss = functional.kl_div(log_probs, log_q.detach(), reduction="none", log_target=True).sum(1)
    return loss, log_probs.gather(1, case.ids), log_probs.argmax(1)


def naive_logits(hidden: Tensor, classifier: Tensor, bias: Tensor | None, case: Case) -> Tensor:
    z = functional.linear(hidden, classifier, bias) * case.scale
    return (z if case.softcap is None else torch.tanh(z / case.softcap) * case.softcap).float()


def check(compute: Compute, exact: Compute, naive: Compute, case: Case) -> None:
    """Asserts that all values and gradients are within budget, and the best ids right as far as rounding can tell."""
    dtype = case.hidden.dtype
    right, right_gradients = with_gradients(exact, case.to(torch.float64))
    near, near_gradients = with_gradients(naive, case.to(dtype))
    found, gradients = with_gradients(compute, case.to(dtype))
    assert found[0].dtype == found[1].dtype == torch.float32
    assert found[2].dtype == torch.int64
    pairs = zip((*found[:2], *gradients), (*near[:2], *near_gradients), (*right[:2], *right_gradients), strict=True)
    for name, (a, b, c) in zip(("loss", "log_probs", "hidden", "classifier", "bias"), pairs, strict=False):
        assert a.shape == c.shape
        assert_within(name, a, b, c, dtype)
    assert [gradient.dtype for gradient in gradients] == [dtype] * len(gradients)
    check_best(found[2], right[2], case)


def assert_within(name: str, found: Tensor, naive: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    error, budget = ((each.double() - exact).norm().item() for each in (found, naive))
    slack = SLACK[dtype] * exact.norm().item() + (NATS * exact.numel() ** 0.5 if name in ("loss", "log_probs") else 0)
    assert error <= budget + slack, f"{name}: error {error:.3g}, naive {budget:.3g}, slack {slack:.3g}"


def check_best(found: Tensor, right: Tensor, case: Case) -> None:
    """The ids of the reference, or others whose logits are so near that rounding decides."""
    doubles = case.to(torch.float64)
    z = reference_losses.head_logits(doubles.hidden, doubles.classifier, doubles.bias, case.softcap, case.scale)
    apart = (z.gather(1, found) - z.gather(1, right)).abs()
    assert (apart <= 2 * torch.finfo(case.hidden.dtype).eps * z.abs().amax(1, keepdim=True)).all()
    ordered = found.sort(1).values
    assert (ordered[:, 1:] > ordered[:, :-1]).all()


def check_exactly(compute: Compute, exact: Compute, case: Case) -> None:
    """For logits that are exact in the dtype: ties go to the lower id."""
    assert torch.equal(compute(case)[2], exact(case.to(torch.float64))[2])


# rows, vocabulary, hidden size, ids to a row
SHAPES = ((252, 507, 123, 1), (252, 507, 123, 4), (7, 1030, 33, 2), (1, 5, 3, 4), (17, 129, 65, 1))
CURVES: Sequence[dict[str, Any]] = (
    {},
    {"bias": True},
    {"softcap": 5.0, "scale": 0.5},
    {"bias": True, "softcap": 30.0, "scale": 2.0},
)
