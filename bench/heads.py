"""Heads of named models in bfloat16: what the benchmarks of fused losses measure on, and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from devices import fewest_seconds, peak_bytes
from shapes import MODELS, Shape
from torch import Tensor

BUNDLED = MODELS["SmolLM2-135M"]
LARGE = tuple(MODELS[name] for name in ("Llama-3.2-1B", "Llama-3.1-8B", "Llama-3.1-70B"))


def cases(rows: int, more: int, device: str) -> list[tuple[Shape, int]]:
    """Heads, and rows of each."""
    if device == "cuda":
        return [(shape, count) for shape in LARGE for count in (rows, more)]
    return [(BUNDLED, rows), (BUNDLED, more), *((shape, rows) for shape in LARGE)]


def tensors(rows: int, shape: Shape = BUNDLED, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """[N, H], [V, H], [N]: logits with a deviation of 3, as models have them."""
    vocab, width, _ = shape
    made: dict[str, Any] = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    hidden = torch.randn(rows, width, dtype=torch.bfloat16, **made)
    classifier = torch.randn(vocab, width, dtype=torch.bfloat16, **made).mul_(3 / width**0.5)
    targets = torch.randint(vocab, (rows,), **made)
    return hidden.requires_grad_(), classifier.requires_grad_(), targets


def as_exact(device: str, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What the plain way is given to be compared with: float32 on a GPU, where Triton's logits are not rounded."""
    return tuple(t.float() if device == "cuda" and t.is_floating_point() else t for t in given)


def assert_gradients_agree(found: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> None:
    """To a hundredth of their size. `found` is used up: large ones have no room for another."""
    for a, b in zip(found, right, strict=True):
        apart, whole = (torch.stack([part.float().norm() for part in of.split(1024)]).norm() for of in (a.sub_(b), b))
        assert apart < 0.01 * whole


def uncounted(rows: int, shape: Shape = BUNDLED) -> tuple[int, ...]:
    """Bytes of the gradients of hidden and classifier."""
    return 2 * rows * shape.hidden, 2 * shape.vocab * shape.hidden


def measure(
    calls: dict[str, Callable[[], Any]], rows: int, shape: Shape, device: str, rounds: int
) -> dict[str, dict[str, float]]:
    """Of each side the fewest seconds and the most bytes. Large heads on a CPU take three rounds."""
    seconds = fewest_seconds(calls, 3 if device == "cpu" and shape in LARGE else rounds, device, "cpu")
    return {
        name: {"seconds": seconds[name], "extra_bytes": peak_bytes(call, device, uncounted(rows, shape))}
        for name, call in calls.items()
    }


def setting_of(rows: int, shape: Shape, device: str) -> str:
    """How it was measured."""
    time = "least CPU time" if device == "cpu" else "least time on the GPU; memory with gradients"
    return f"{rows} rows, {shape.hidden} x {shape.vocab:,}, bfloat16, forward and backward, {time}"
