"""AdamW with a pull toward the base weights: one tensor, in place, in one pass over memory.

`reference.anchored_adamw` is the specification, operation by operation: on every instruction set `native` gives its
bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor

from .. import backends
from ..errors import InvalidArgumentError
from . import reference
from .reference import AdamWRounding, AdamWScalars, AdamWTensors

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The torch backend computes so many elements at a time, to bound the memory of what is in between.
_CHUNK_ELEMENTS = 2**20


def anchored_adamw(
    change: Tensor | None,
    gradient: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    base: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    step: int,
    learning_rate: float,
    pull: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    seed: int = 0,
    offset: int = 0,
    backend: str = "auto",
    num_threads: int | None = None,
) -> None:
    """One step on a tensor: AdamW without decay, then `pull`, a share of the way from the new weight back to the base.

    All tensors have one shape and are contiguous; gradient is float32, bfloat16 or float16. Two layouts:

    - with a `change` (the weight minus the base, float32): the moments are float32. Where `base` and `weight` are
      given, both of one of these dtypes, weight = base + change is written, rounded to nearest.
    - compact, with change=None: first_moment, second_moment, base and weight are bfloat16. What is written is rounded
      stochastically, without bias, by a function of (seed, step, offset + the element's index): all backends and all
      ways to cut a tensor into shards give the same.

    Writes change, first_moment, second_moment and weight. The moments start as zeros.
    step: 1, 2, ...; learning_rate >= 0; pull in [0, 1]; betas in [0, 1), twice; eps at least the least normal float32.
    seed, offset (index of element 0): integers from 0; compact alone uses them.
    backend: "auto", "reference", "torch" (any device), "native" (CPU) or "triton". All have the same bits, whatever the
        number of threads: but NaN may be any NaN, and Triton may differ where a GPU rounds differently.
    num_threads: for "native" only, default torch.get_num_threads(); changes no result.

    The pull is from the new weight, after AdamW's update: the averaging that [SF 3.2] writes, not that of its published
    code (docs/embedding.md). Values that are not finite spread as IEEE 754 has it. Raises InvalidArgumentError, for
    tensors that share memory too, and BackendUnavailableError. Source of AdamW: arXiv 1711.05101.
    """
    tensors = AdamWTensors(change, gradient, first_moment, second_moment, base, weight)
    _check_tensors(tensors)
    _check_numbers(step, learning_rate, pull, betas, eps)
    _check_indices(gradient.numel(), seed, offset, num_threads)
    rates = float(learning_rate), float(pull), float(betas[0]), float(betas[1]), float(eps)
    with torch.no_grad():
        torch.ops.oml_fast.anchored_adamw(*tensors, *rates, step, seed, offset, backend, num_threads or 0)


def _check_tensors(tensors: AdamWTensors) -> None:
    given: dict[str, Tensor] = {}
    for name, tensor in tensors._asdict().items():
        if tensor is None and name in ("change", "base", "weight"):
            continue
        if not isinstance(tensor, Tensor):
            raise InvalidArgumentError(f"{name} is a {type(tensor).__name__}: pass a torch.Tensor.")
        given[name] = tensor
    compact = tensors.change is None
    for name, tensor in given.items():
        _check_tensor(name, tensor, tensors.gradient, compact)
    base, weight = tensors.base, tensors.weight
    if compact and (base is None or weight is None):
        raise InvalidArgumentError("change is None, which is the compact layout: it needs both base and weight.")
    if (base is None) != (weight is None):
        raise InvalidArgumentError("base and weight go together: pass both, or neither to update the change alone.")
    if base is not None and weight is not None and base.dtype != weight.dtype:
        raise InvalidArgumentError(f"base has dtype {base.dtype}, weight {weight.dtype}: they must have one dtype.")


def _check_tensor(name: str, tensor: Tensor, gradient: Tensor, compact: bool) -> None:
    layout = "without a change (the compact layout)" if compact else "with a change"
    usable: tuple[torch.dtype, ...] = (torch.bfloat16,) if compact else (torch.float32,)
    if name == "gradient" or (name in ("base", "weight") and not compact):
        usable = DTYPES
    if tensor.dtype not in usable:
        wanted = " or ".join(map(str, usable))
        raise InvalidArgumentError(f"{name} has dtype {tensor.dtype}: {layout} it must be {wanted}.")
    if not tensor.is_contiguous():
        raise InvalidArgumentError(
            f"{name} has shape {tuple(tensor.shape)} and strides {tensor.stride()}: it must be contiguous."
        )
    if tensor.shape != gradient.shape:
        raise InvalidArgumentError(
            f"{name} has shape {tuple(tensor.shape)}, gradient {tuple(gradient.shape)}: all must have one shape."
        )
    if tensor.device != gradient.device:
        raise InvalidArgumentError(
            f"{name} is on {tensor.device}, gradient on {gradient.device}: all must be on one device."
        )


def _check_numbers(step: int, learning_rate: float, pull: float, betas: tuple[float, float], eps: float) -> None:
    if isinstance(step, bool) or not isinstance(step, int) or not 1 <= step < 2**63:
        raise InvalidArgumentError(f"step is {step!r}: it must be an integer from 1.")
    if not _is_number(learning_rate) or not 0 <= learning_rate < math.inf:
        raise InvalidArgumentError(f"learning_rate is {learning_rate!r}: it must be a number from 0.")
    if not _is_number(pull) or not 0 <= pull <= 1:
        raise InvalidArgumentError(f"pull is {pull!r}: it must be a number in [0, 1].")
    if not isinstance(betas, tuple | list) or len(betas) != 2 or not all(_is_number(b) and 0 <= b < 1 for b in betas):
        raise InvalidArgumentError(f"betas is {betas!r}: it must be two numbers in [0, 1).")
    least = torch.finfo(torch.float32).tiny
    if not _is_number(eps) or not least <= eps < math.inf:
        raise InvalidArgumentError(f"eps is {eps!r}: it must be a number from {least}, or a zero gradient gives NaN.")


def _check_indices(elements: int, seed: int, offset: int, num_threads: int | None) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InvalidArgumentError(f"seed is {seed!r}: it must be an integer from 0 to 2**63 - 1.")
    if isinstance(offset, bool) or not isinstance(offset, int) or not 0 <= offset <= 2**63 - 1 - elements:
        raise InvalidArgumentError(
            f"offset is {offset!r}, with {elements} elements: use an integer from 0, with all indices below 2**63."
        )
    if num_threads is not None and (not isinstance(num_threads, int) or not 1 <= num_threads <= 4096):
        raise InvalidArgumentError(f"num_threads is {num_threads!r}: use an integer from 1 to 4096, or None.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# Defined by its schema: torch.library.custom_op takes as long for 16 arguments as the step of a small matrix.
_OP = "oml_fast::anchored_adamw"
torch.library.define(
    _OP,
    "(Tensor(a!)? change, Tensor gradient, Tensor(b!) first_moment, Tensor(c!) second_moment, Tensor? base, "
    "Tensor(d!)? weight, float learning_rate, float pull, float beta1, float beta2, float eps, int step, int seed, "
    "int offset, str backend, int num_threads) -> ()",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.register_fake(_OP, lambda *_: None)  # it returns nothing


@torch.library.impl(_OP, "default")
def _step(
    change: Tensor | None,
    gradient: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    base: Tensor | None,
    weight: Tensor | None,
    learning_rate: float,
    pull: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    seed: int,
    offset: int,
    backend: str,
    num_threads: int,
) -> None:
    # What takes real memory and a real device stands here, since `anchored_adamw` itself may be traced.
    tensors = AdamWTensors(change, gradient, first_moment, second_moment, base, weight)
    _check_overlap(tensors)
    chosen = backends.resolve("anchored_adamw", backend, gradient.device.type)
    if gradient.numel() == 0:
        return
    scalars = reference.adamw_scalars(step, learning_rate, pull, (beta1, beta2), eps)
    _BACKENDS[chosen](tensors, scalars, AdamWRounding(seed, step, offset), num_threads or torch.get_num_threads())
    written = (change, first_moment, second_moment, weight)
    # Autograd refuses a backward pass through what was changed since; inference tensors have no version.
    torch.autograd.graph.increment_version([t for t in written if t is not None and not t.is_inference()])


def _check_overlap(tensors: AdamWTensors) -> None:
    places = [(n, t.data_ptr(), t.data_ptr() + t.nbytes) for n, t in tensors._asdict().items() if t is not None]
    for (name, start, end), (other, other_start, other_end) in combinations(places, 2):
        # The gradient and the base are only read.
        if start < other_end and other_start < end and {name, other} != {"gradient", "base"}:
            raise InvalidArgumentError(f"{name} and {other} share memory: clone() one of them.")


def _reference(tensors: AdamWTensors, scalars: AdamWScalars, rounding: AdamWRounding, _: int) -> None:
    made = reference.anchored_adamw(tensors, scalars, rounding)
    for name in ("change", "first_moment", "second_moment", "weight"):
        if (new := getattr(made, name)) is not None:
            getattr(tensors, name).copy_(new)


def _torch(tensors: AdamWTensors, scalars: AdamWScalars, rounding: AdamWRounding, _: int) -> None:
    """The reference, in chunks."""
    for start in range(0, tensors.gradient.numel(), _CHUNK_ELEMENTS):
        end = start + _CHUNK_ELEMENTS
        chunk = AdamWTensors._make(None if tensor is None else tensor.view(-1)[start:end] for tensor in tensors)
        _reference(chunk, scalars, rounding._replace(offset=rounding.offset + start), _)


def _native(tensors: AdamWTensors, scalars: AdamWScalars, rounding: AdamWRounding, threads: int) -> None:
    change, gradient, first_moment, second_moment, base, weight = tensors
    backends.native().anchored_adamw(
        gradient.numel(),
        gradient.data_ptr(),
        DTYPES.index(gradient.dtype),
        0 if change is None else change.data_ptr(),
        first_moment.data_ptr(),
        second_moment.data_ptr(),
        0 if base is None else base.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        0 if weight is None else DTYPES.index(weight.dtype),
        *scalars,
        *rounding,
        threads,
        backends.cpu_isa(),
    )


def _triton(tensors: AdamWTensors, scalars: AdamWScalars, rounding: AdamWRounding, _: int) -> None:
    from ..kernels import anchored_adamw as kernel

    kernel.launch(*tensors, *scalars, *rounding)


# The names are those of backends.OFFERED.
_BACKENDS: dict[str, Callable[[AdamWTensors, AdamWScalars, AdamWRounding, int], None]] = {
    "reference": _reference,
    "torch": _torch,
    "native": _native,
    "triton": _triton,
}
