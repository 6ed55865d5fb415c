"""What the public doors of both losses check, and their rule for keeping logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InvalidArgumentError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of the logits, before scale and soft cap, so much is kept for the backward pass, on the CPU: to compute all of them
# again is one matrix product of four, and a quarter of the time. A fixed size, so that many rows take no more.
_KEPT_BYTES = 2**26


def kept_ids(backend: str, heads: int, vocab: int, *tensors: Tensor | None) -> int:
    """Of how many ids the logits are kept, by a call with so many heads: none where no gradient is wanted."""
    hidden = tensors[0]
    assert hidden is not None
    wanted = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    # Triton's logits are in float32 in registers, and are not worth their way to memory and back.
    if not wanted or hidden.device.type != "cpu" or backend == "triton":
        return 0
    return min(_KEPT_BYTES // (heads * max(len(hidden), 1) * hidden.element_size()), vocab)


def fake_gradients(hidden: Tensor, classifier: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """What a backward op returns, without its values: of hidden, classifier and bias."""
    shapes = tuple(hidden.shape), tuple(classifier.shape), (len(classifier),)
    first, second, third = (hidden.new_empty(shape if want else 0) for shape, want in zip(shapes, wanted, strict=True))
    return first, second, third


def check_head(hidden: Tensor, classifier: Tensor, bias: Tensor | None, prefix: str = "") -> None:
    """[N, H], [V, H] and [V], of one dtype, on one device; `prefix` is of their names."""
    names = f"{prefix}hidden", f"{prefix}classifier", f"{prefix}bias"
    for name, tensor in zip(names, (hidden, classifier, bias), strict=True):
        if not isinstance(tensor, Tensor) and not (tensor is None and name.endswith("bias")):
            raise InvalidArgumentError(f"{name} is a {type(tensor).__name__}: pass a torch.Tensor.")
    if hidden.dim() != 2:
        raise InvalidArgumentError(f"{names[0]} has shape {tuple(hidden.shape)}: reshape it to [rows, hidden size].")
    if classifier.dim() != 2 or not len(classifier):
        raise InvalidArgumentError(
            f"{names[1]} has shape {tuple(classifier.shape)}: it must be [vocabulary, hidden size], one row or more."
        )
    if hidden.dtype not in DTYPES:
        usable = ", ".join(map(str, DTYPES))
        raise InvalidArgumentError(f"{names[0]} has dtype {hidden.dtype}: convert it to one of {usable}.")
    if hidden.shape[1] != classifier.shape[1] or not hidden.shape[1]:
        raise InvalidArgumentError(
            f"{names[0]} has shape {tuple(hidden.shape)}, {names[1]} {tuple(classifier.shape)}: both must end with the "
            "hidden size, which is 1 or more."
        )
    if bias is not None and tuple(bias.shape) != (len(classifier),):
        raise InvalidArgumentError(
            f"{names[2]} has shape {tuple(bias.shape)}, the vocabulary {len(classifier)} ids: make it one for each."
        )
    for name, tensor in zip(names[1:], (classifier, bias), strict=True):
        if tensor is not None and tensor.dtype != hidden.dtype:
            raise InvalidArgumentError(
                f"{name} has dtype {tensor.dtype}, {names[0]} {hidden.dtype}: convert one of them, for example with "
                f"{names[0]}.to({name}.dtype)."
            )
        check_device(name, tensor, names[0], hidden)


def check_ids(name: str, ids: Tensor, hidden: Tensor) -> None:
    """int64 on the device of hidden; what the ids are is checked by `check_range`."""
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
        kind = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise InvalidArgumentError(f"{name} is of {kind}: pass a Tensor of torch.int64, for example {name}.long().")
    check_device(name, ids, "hidden", hidden)


def check_range(name: str, ids: Tensor, vocab: int, way_out: str) -> None:
    """Every id in 0 .. vocab - 1. It reads the ids: on a GPU it waits for them, once a call."""
    bad = (ids < 0) | (ids >= vocab)
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        found = int(ids[bad][0])
        raise InvalidArgumentError(
            f"row {row} of {name} holds the id {found}, the ids go from 0 to {vocab - 1}: {way_out}"
        )


def check_device(name: str, tensor: Tensor | None, other: str, beside: Tensor) -> None:
    if tensor is not None and tensor.device != beside.device:
        raise InvalidArgumentError(
            f"{name} is on {tensor.device}, {other} on {beside.device}: use {name}.to({other}.device)."
        )


def check_curve(softcap: float | None, scale: float) -> None:
    if softcap is not None:
        check_number("softcap", softcap, lambda x: x > 0, "a finite number above 0, or None")
    check_number("scale", scale, lambda x: x > 0, "a finite number above 0")


def check_number(name: str, value: object, good: Callable[[float], bool], way_out: str) -> None:
    """A finite number that is `good`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not good(value):
        raise InvalidArgumentError(f"{name} is {value!r}: it must be {way_out}.")
