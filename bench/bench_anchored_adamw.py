"""A step of anchored_adamw against torch's fused AdamW with the pull after it, on matrices of the bundled model.

A step takes as many matrices of one shape as exceed the caches, as a model's do. The baselines get what helps them:
buffers made beforehand, so that they time arithmetic and not the system's memory. `pytest --benchmark
bench/bench_anchored_adamw.py` times it; `python bench/bench_anchored_adamw.py` measures all sides in turn within one
run, prints a table and writes bench/results/anchored_adamw.json. `--device cuda` takes the matrices of an 8B, on a GPU,
and tells bytes over time as a share of a copy's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from common import Figure, at_least, command, finish, one_thread, parser
from devices import copy_bandwidth, described, fewest_seconds, parse
from shapes import MODELS
from torch import Tensor

from oml_fast import backends
from oml_fast.ops import anchored_adamw


class Matrices(NamedTuple):
    """Matrices of one shape."""

    shape: tuple[int, int]
    count: int


MODEL, LARGE = MODELS["SmolLM2-135M"], MODELS["Llama-3.1-8B"]
MATRICES = {
    "attention": Matrices((MODEL.hidden, MODEL.hidden), MODEL.layers),
    "MLP": Matrices((1536, MODEL.hidden), 12),  # the configuration's intermediate_size
    "embedding": Matrices((MODEL.vocab, MODEL.hidden), 1),
}
ON_A_GPU = {
    "attention": Matrices((LARGE.hidden, LARGE.hidden), 8),
    "MLP": Matrices((14_336, LARGE.hidden), 4),
    "embedding": Matrices((LARGE.vocab, LARGE.hidden), 1),
}
BACKENDS = {"cpu": "native", "cuda": "triton"}
GRADIENTS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
RATE, PULL, BAR = 1e-3, 0.01, 1.2

Step = Callable[[], None]


class Fused:
    """torch.optim.AdamW(fused=True) on float32 changes, then the pull and the write. `pull` is lerp_ or mul_."""

    def __init__(self, bases: list[Tensor], gradients: list[Tensor], pull: str) -> None:
        self._bases, self._gradients, self._pull = bases, gradients, pull
        device = bases[0].device
        self.changes = [torch.zeros(base.shape, device=device, requires_grad=True) for base in bases]
        self.weights = [base.clone() for base in bases]
        self._wide, self._zero = torch.empty(bases[0].shape, device=device), torch.zeros((), device=device)
        for change, gradient in zip(self.changes, gradients, strict=True):
            # The fused step takes one dtype only.
            change.grad = gradient if gradient.dtype == torch.float32 else torch.zeros(change.shape, device=device)
        self._adamw = torch.optim.AdamW(self.changes, lr=RATE, weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self) -> None:
        for change, gradient in zip(self.changes, self._gradients, strict=True):
            if change.grad is not gradient:
                change.grad.copy_(gradient)
        self._adamw.step()
        for change, base, weight in zip(self.changes, self._bases, self.weights, strict=True):
            if self._pull == "lerp_":
                change.lerp_(self._zero, PULL)
            else:
                change.mul_(1 - PULL)
            torch.add(change, base, out=self._wide)
            weight.copy_(self._wide)


class Ours:
    """`ops.anchored_adamw`; compact: bfloat16 alone."""

    def __init__(self, bases: list[Tensor], gradients: list[Tensor], backend: str, compact: bool = False) -> None:
        dtype = torch.bfloat16 if compact else torch.float32
        self._bases, self._gradients, self._backend, self._steps = bases, gradients, backend, 0
        made: dict[str, Any] = {"dtype": dtype, "device": bases[0].device}
        self.changes = [None if compact else torch.zeros(base.shape, **made) for base in bases]
        self._moments = [[torch.zeros(base.shape, **made) for _ in range(2)] for base in bases]
        self.weights = [base.clone() for base in bases]

    def step(self) -> None:
        self._steps += 1
        arrays = zip(self.changes, self._gradients, self._moments, self._bases, self.weights, strict=True)
        for change, gradient, moments, base, weight in arrays:
            numbers = {"step": self._steps, "learning_rate": RATE, "pull": PULL, "num_threads": 1}
            anchored_adamw(change, gradient, *moments, base, weight, backend=self._backend, **numbers)


def draw(
    shape: tuple[int, int], count: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[list[Tensor], list[Tensor]]:
    """Base weights and gradients."""
    made: dict[str, Any] = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    bases = [torch.randn(shape, **made).mul_(0.02).bfloat16() for _ in range(count)]
    return bases, [torch.randn(shape, **made).mul_(1e-3).to(dtype) for _ in range(count)]


def assert_agree(shape: tuple[int, int], dtype: torch.dtype, device: str = "cpu") -> None:
    """All sides make of a matrix the same in two steps; of a large one its first rows tell."""
    exact = draw((min(shape[0], 2048), shape[1]), 1, dtype)  # the reference computes on the CPU
    drawn = [[tensor.to(device) for tensor in tensors] for tensors in exact]
    fused = [Fused(*drawn, pull) for pull in ("lerp_", "mul_")]
    backend = BACKENDS[device] if backends.availability(BACKENDS[device]).available else "torch"
    own, right = Ours(*drawn, backend), Ours(*exact, "reference")
    compact, right_compact = Ours(*drawn, backend, compact=True), Ours(*exact, "reference", compact=True)
    for _ in range(2):
        for side in (*fused, own, right, compact, right_compact):
            side.step()
    assert torch.equal(own.changes[0].cpu(), right.changes[0])
    assert torch.equal(own.weights[0].cpu(), right.weights[0])
    assert torch.equal(compact.weights[0].cpu(), right_compact.weights[0])
    for side in fused:
        torch.testing.assert_close(side.changes[0].detach().cpu(), right.changes[0], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(compact.weights[0].cpu(), right.weights[0], rtol=2**-6, atol=2**-13)


def sides(shape: tuple[int, int], count: int, dtype: torch.dtype, device: str = "cpu") -> dict[str, Step]:
    """What is timed, after a check that it computes the same."""
    assert_agree(shape, dtype, device)
    drawn = draw(shape, count, dtype, device)
    found: dict[str, Fused | Ours] = {f"fused, {pull}": Fused(*drawn, pull) for pull in ("lerp_", "mul_")}
    backend = BACKENDS[device]
    if backends.availability(backend).available:
        found |= {backend: Ours(*drawn, backend), f"{backend}, compact": Ours(*drawn, backend, compact=True)}
    return {name: side.step for name, side in found.items()}


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("side", ["fused, lerp_", "native", "native, compact"])
def bench_anchored_adamw(benchmark: Any, side: str, gradient: str) -> None:
    shape, _ = MATRICES["attention"]
    with one_thread():
        steps = sides(shape, 1, GRADIENTS[gradient])
        if side not in steps:
            pytest.skip(backends.availability("native").detail)
        benchmark.extra_info.update(shape=shape, gradient=gradient)
        benchmark(steps[side])


def bytes_a_weight(dtype: torch.dtype, compact: bool) -> int:
    """That a step moves (docs/kernels.md)."""
    return (14 if compact else 28) + dtype.itemsize


def main() -> None:
    options = parser(__doc__, "anchored_adamw")
    options.add_argument("--rounds", type=int, default=30, help="steps of each side (default: 30)")
    arguments = parse(options, "anchored_adamw")
    device, backend = arguments.device, BACKENDS[arguments.device]
    torch.set_num_threads(arguments.threads)
    run = described(arguments.threads, device)
    copied = copy_bandwidth()[0] if device == "cuda" else None
    figures, cases = [], []
    for name, (shape, count) in (MATRICES if device == "cpu" else ON_A_GPU).items():
        for gradient, dtype in GRADIENTS.items():
            least = fewest_seconds(sides(shape, count, dtype, device), arguments.rounds, device, "wall")
            seconds = {side: each / (count * shape[0] * shape[1]) for side, each in least.items()}
            cases.append({"matrices": name, "shape": shape, "count": count, "gradient": gradient, "seconds": seconds})
            for side, bar in ((backend, BAR if device == "cpu" else None), (f"{backend}, compact", None)):
                if side not in seconds:
                    continue
                weight = f"{seconds[side] * 1e9:.2f} ns" if device == "cpu" else f"{seconds[side] * 1e12:.1f} ps"
                what = f"{name} {shape[0]} x {shape[1]}, gradient {gradient}; {weight} a weight"
                title = f"anchored_adamw{side.removeprefix(backend)}"
                ratio = at_least(seconds["fused, lerp_"] / seconds[side], bar)
                figures.append(Figure(f"{title}, times faster than fused AdamW and lerp_", what, *ratio, command()))
                if copied is not None:
                    share = bytes_a_weight(dtype, side != backend) / seconds[side] / copied
                    shown = f"{share:.0%}", "", None
                    figures.append(Figure(f"{title}, bytes over time as a share of a copy's", what, *shown, command()))
    finish(arguments.out, run, figures, {"cases": cases, "copy_bytes_per_second": copied})


if __name__ == "__main__":
    main()
