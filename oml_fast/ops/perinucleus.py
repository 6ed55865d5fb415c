"""Perinucleus sampling's candidates: the admissible tokens just outside the nucleus. [SF 3.1]

`reference.perinucleus` is the specification. Nothing here is random: `generate` checks the candidates and draws among
them, so every backend, batch size and number of threads gives the same fingerprints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import backends
from ..errors import InvalidArgumentError
from . import perinucleus_torch, reference
from .reference import PerinucleusRows, RowStatus

# Masses are summed as 64-bit integers, which must hold the sum over a row.
MAX_VOCAB = 2**20
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_ROW_ERRORS = {
    RowStatus.NAN: "holds NaN",
    RowStatus.NO_FINITE: "holds nothing but -inf",
    RowStatus.PLUS_INFINITY: "holds +inf",
}


class Perinucleus(NamedTuple):
    """Candidates of B rows."""

    token_ids: Tensor  # [B, W] int64, in order of probability; -1 where the row has fewer candidates
    probs: Tensor  # [B, W] float64, under the full softmax; 0 where missing
    nucleus_size: Tensor  # [B] int64
    nucleus_mass: Tensor  # [B] float64
    short: Tensor  # [B] bool: fewer than W candidates


def perinucleus(
    logits: Tensor,
    threshold: float = 0.8,
    num_candidates: int = 16,
    admissible: Tensor | None = None,
    *,
    backend: str = "auto",
    num_threads: int | None = None,
    checked: bool = True,
) -> Perinucleus:
    """[B, V] logits -> the first W = `num_candidates` admissible tokens after each row's nucleus, in order.

    logits: [B, V] float32, bfloat16 or float16, any row stride; V <= 2**20. -inf means p = 0.
    threshold: in [0, 1); the nucleus is the shortest prefix of the tokens (p falling, ties by id rising) whose mass
        reaches it, so 0 makes it one token.
    admissible: [V] bool, on the device of the logits; None admits all.
    backend: "auto", "reference", "torch" (any device), "native" (CPU), "cuda" (NVIDIA GPUs, where oml_fast was built
        with CUDA) or "triton" (GPUs, and Triton's interpreter). All agree wherever the float64 mass at the boundary is
        more than 2e-7 away from the threshold; nearer, the nucleus may end one token earlier or later. "native" and
        "cuda" give the same bits.
    num_threads: for "native" only, default torch.get_num_threads(); changes no result.
    checked: whether a row with NaN, +inf or nothing but -inf raises, which waits for a GPU. With False such a row has
        token_ids -1, probs 0, nucleus_size 0, nucleus_mass 0 and is short, and with "cuda" and "triton" nothing waits:
        a CUDA graph can capture it.

    An op of torch: torch.compile takes it into a graph. Raises InvalidArgumentError, which names the first row that
    cannot be used, and BackendUnavailableError. Source: Scalable Fingerprinting of Large Language Models, arXiv
    2502.07760, section 3.1.
    """
    _check_logits(logits)
    _check_numbers(threshold, num_candidates, logits.shape[1], num_threads)
    _check_admissible(admissible, logits)
    token_ids, probs, size, mass, status = _rows(
        logits.detach(), float(threshold), num_candidates, admissible, backend, num_threads or 0, checked
    )
    # As an int: torch.compile would compare the tensor with the enum's member as Python objects.
    return Perinucleus(token_ids, probs, size, mass, short=status != int(RowStatus.OK))


def _check_logits(logits: Tensor) -> None:
    if not isinstance(logits, Tensor):
        raise InvalidArgumentError(f"logits is a {type(logits).__name__}: pass a torch.Tensor of [rows, vocabulary].")
    shape = tuple(logits.shape)
    if len(shape) != 2:
        raise InvalidArgumentError(f"logits has shape {shape}: reshape it to [rows, vocabulary].")
    if logits.dtype not in DTYPES:
        usable = ", ".join(map(str, DTYPES))
        raise InvalidArgumentError(f"logits has dtype {logits.dtype}: convert it to one of {usable}.")
    if not 1 <= shape[1] <= MAX_VOCAB:
        raise InvalidArgumentError(f"logits has shape {shape}: the vocabulary must have 1 to {MAX_VOCAB} tokens.")


def _check_numbers(threshold: float, num_candidates: int, vocab: int, num_threads: int | None) -> None:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold < 1:
        raise InvalidArgumentError(f"threshold is {threshold!r}: it must be a number in [0, 1).")
    if isinstance(num_candidates, bool) or not isinstance(num_candidates, int):
        raise InvalidArgumentError(f"num_candidates is {num_candidates!r}: it must be an integer.")
    if not 1 <= num_candidates <= vocab:
        raise InvalidArgumentError(
            f"num_candidates is {num_candidates}, the vocabulary has {vocab} tokens: ask for 1 to {vocab}."
        )
    if num_threads is not None and (not isinstance(num_threads, int) or not 1 <= num_threads <= 4096):
        raise InvalidArgumentError(f"num_threads is {num_threads!r}: use an integer from 1 to 4096, or None.")


def _check_admissible(admissible: Tensor | None, logits: Tensor) -> None:
    if admissible is None:
        return
    if not isinstance(admissible, Tensor) or admissible.dtype != torch.bool:
        kind = admissible.dtype if isinstance(admissible, Tensor) else type(admissible).__name__
        raise InvalidArgumentError(f"admissible is of {kind}: pass a Tensor of torch.bool, or None for all tokens.")
    if tuple(admissible.shape) != (logits.shape[1],):
        raise InvalidArgumentError(
            f"admissible has shape {tuple(admissible.shape)}, the vocabulary {logits.shape[1]} tokens: "
            f"make it ({logits.shape[1]},)."
        )
    if admissible.device != logits.device:
        raise InvalidArgumentError(
            f"admissible is on {admissible.device}, logits on {logits.device}: use admissible.to(logits.device)."
        )


def _check_rows(status: Tensor) -> None:
    bad = status > RowStatus.SHORT
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        what = _ROW_ERRORS[RowStatus(int(status[row]))]
        raise InvalidArgumentError(f"row {row} of logits {what}: mend the model's output, or leave that row out.")


@torch.library.custom_op("oml_fast::perinucleus", mutates_args=())
def _rows(
    logits: Tensor,
    threshold: float,
    width: int,
    admissible: Tensor | None,
    backend: str,
    num_threads: int,
    checked: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The columns of PerinucleusRows. What takes real memory stands here, since `perinucleus` itself may be traced."""
    chosen = backends.resolve("perinucleus", backend, logits.device.type)
    if len(logits) == 0:
        return _unwritten(logits, width)
    rows = _BACKENDS[chosen](logits, threshold, width, admissible, num_threads or torch.get_num_threads())
    if checked:
        _check_rows(rows.status)
    return rows


@_rows.register_fake
def _(
    logits: Tensor,
    threshold: float,
    width: int,
    admissible: Tensor | None,
    backend: str,
    num_threads: int,
    checked: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    backends.resolve("perinucleus", backend, logits.device.type)
    return _unwritten(logits, width)


def _unwritten(logits: Tensor, width: int) -> PerinucleusRows:
    rows = len(logits)
    return PerinucleusRows(
        token_ids=logits.new_empty((rows, width), dtype=torch.int64),
        probs=logits.new_empty((rows, width), dtype=torch.float64),
        nucleus_size=logits.new_empty((rows,), dtype=torch.int64),
        nucleus_mass=logits.new_empty((rows,), dtype=torch.float64),
        status=logits.new_empty((rows,), dtype=torch.uint8),
    )


def _without_bad_rows(rows: PerinucleusRows) -> PerinucleusRows:
    """For backends that leave anything in such rows."""
    token_ids, probs, size, mass, status = rows
    bad = status > RowStatus.SHORT
    return PerinucleusRows(
        token_ids.masked_fill(bad[:, None], -1),
        probs.masked_fill(bad[:, None], 0),
        size.masked_fill(bad, 0),
        mass.masked_fill(bad, 0),
        status,
    )


def _reference(logits: Tensor, threshold: float, width: int, admissible: Tensor | None, _: int) -> PerinucleusRows:
    return reference.perinucleus(logits, threshold, width, admissible)


def _torch(logits: Tensor, threshold: float, width: int, admissible: Tensor | None, _: int) -> PerinucleusRows:
    return _without_bad_rows(perinucleus_torch.perinucleus(logits, threshold, width, admissible))


def _native(logits: Tensor, threshold: float, width: int, admissible: Tensor | None, threads: int) -> PerinucleusRows:
    def call(*arguments: float) -> None:
        backends.native().perinucleus(*arguments, threads, backends.cpu_isa())

    return _compiled(call, logits, threshold, width, admissible)


def _cuda(logits: Tensor, threshold: float, width: int, admissible: Tensor | None, _: int) -> PerinucleusRows:
    native = backends.native()
    with torch.cuda.device(logits.device):
        bytes_needed = native.perinucleus_cuda_workspace(len(logits), width)
        workspace = torch.empty(bytes_needed, dtype=torch.uint8, device=logits.device)

        def call(*arguments: float) -> None:
            stream = torch.cuda.current_stream().cuda_stream
            native.perinucleus_cuda(*arguments, workspace.data_ptr(), logits.device.index, stream)

        return _compiled(call, logits, threshold, width, admissible)


def _compiled(
    call: Callable[..., None], logits: Tensor, threshold: float, width: int, admissible: Tensor | None
) -> PerinucleusRows:
    """From tensors to the pointers and sizes that native code takes."""
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    if admissible is not None:
        admissible = admissible.contiguous()
    out = _unwritten(logits, width)
    call(
        logits.data_ptr(),
        DTYPES.index(logits.dtype),
        *logits.shape,
        logits.stride(0),
        0 if admissible is None else admissible.data_ptr(),
        threshold,
        width,
        *(tensor.data_ptr() for tensor in out),
    )
    return out


def _triton(logits: Tensor, threshold: float, width: int, admissible: Tensor | None, _: int) -> PerinucleusRows:
    from ..kernels import perinucleus as kernels

    return _without_bad_rows(PerinucleusRows(*kernels.perinucleus(logits, threshold, width, admissible)))


# The names are those of backends.OFFERED.
_BACKENDS: dict[str, Callable[[Tensor, float, int, Tensor | None, int], PerinucleusRows]] = {
    "reference": _reference,
    "torch": _torch,
    "native": _native,
    "cuda": _cuda,
    "triton": _triton,
}
