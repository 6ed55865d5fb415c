"""A step of anchored_adamw against torch's fused AdamW with the pull after it, on matrices of the bundled model.

A step takes as many matrices of one shape as exceed the caches, as a model's do. The baselines get what helps them:
buffers made beforehand, so that they time arithmetic and not the system's memory. `pytest --benchmark
bench/bench_anchored_adamw.py` times it; `python bench/bench_anchored_adamw.py` measures all sides in turn within one
run, prints a table and writes bench/results/anchored_adamw.json.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from common import Figure, at_least, command, describe_run, finish, in_turn, least, one_thread, parser
from shapes import MODELS
from torch import Tensor

from oml_fast import backends
from oml_fast.ops import anchored_adamw


class Matrices(NamedTuple):
    """Matrices of one shape."""

    shape: tuple[int, int]
    count: int


MODEL = MODELS["SmolLM2-135M"]
MATRICES = {
    "attention": Matrices((MODEL.hidden, MODEL.hidden), MODEL.layers),
    "MLP": Matrices((1536, MODEL.hidden), 12),  # the configuration's intermediate_size
    "embedding": Matrices((MODEL.vocab, MODEL.hidden), 1),
}
GRADIENTS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
RATE, PULL, BAR = 1e-3, 0.01, 1.2

Step = Callable[[], None]


class Fused:
    """torch.optim.AdamW(fused=True) on float32 changes, then the pull and the write. `pull` is lerp_ or mul_."""

    def __init__(self, bases: list[Tensor], gradients: list[Tensor], pull: str) -> None:
        self._bases, self._gradients, self._pull = bases, gradients, pull
        self.changes = [torch.zeros(base.shape, requires_grad=True) for base in bases]
        self.weights, self._wide, self._zero = [b.clone() for b in bases], torch.empty(bases[0].shape), torch.zeros(())
        for change, gradient in zip(self.changes, gradients, strict=True):
            # The fused step takes one dtype only.
            change.grad = gradient if gradient.dtype == torch.float32 else torch.zeros(change.shape)
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
        self.changes = [None if compact else torch.zeros(base.shape) for base in bases]
        self._moments = [[torch.zeros(base.shape, dtype=dtype) for _ in range(2)] for base in bases]
        self.weights = [base.clone() for base in bases]

    def step(self) -> None:
        self._steps += 1
        arrays = zip(self.changes, self._gradients, self._moments, self._bases, self.weights, strict=True)
        for change, gradient, moments, base, weight in arrays:
            numbers = {"step": self._steps, "learning_rate": RATE, "pull": PULL, "num_threads": 1}
            anchored_adamw(change, gradient, *moments, base, weight, backend=self._backend, **numbers)


def draw(shape: tuple[int, int], count: int, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Base weights and gradients."""
    source = torch.Generator().manual_seed(0)
    bases = [torch.randn(shape, generator=source).mul_(0.02).bfloat16() for _ in range(count)]
    return bases, [torch.randn(shape, generator=source).mul_(1e-3).to(dtype) for _ in range(count)]


def assert_agree(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """All sides make of a matrix the same in two steps; of a large one its first rows tell."""
    drawn = draw((min(shape[0], 2048), shape[1]), 1, dtype)
    fused = [Fused(*drawn, pull) for pull in ("lerp_", "mul_")]
    backend = "native" if backends.availability("native").available else "torch"
    own, right = Ours(*drawn, backend), Ours(*drawn, "reference")
    compact, right_compact = Ours(*drawn, backend, compact=True), Ours(*drawn, "reference", compact=True)
    for _ in range(2):
        for side in (*fused, own, right, compact, right_compact):
            side.step()
    assert torch.equal(own.changes[0], right.changes[0])
    assert torch.equal(own.weights[0], right.weights[0])
    assert torch.equal(compact.weights[0], right_compact.weights[0])
    for side in fused:
        torch.testing.assert_close(side.changes[0].detach(), right.changes[0], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(compact.weights[0], right.weights[0], rtol=2**-6, atol=2**-13)


def sides(shape: tuple[int, int], count: int, dtype: torch.dtype) -> dict[str, Step]:
    """What is timed, after a check that it computes the same."""
    assert_agree(shape, dtype)
    drawn = draw(shape, count, dtype)
    found: dict[str, Fused | Ours] = {f"fused, {pull}": Fused(*drawn, pull) for pull in ("lerp_", "mul_")}
    if backends.availability("native").available:
        found |= {"native": Ours(*drawn, "native"), "native, compact": Ours(*drawn, "native", compact=True)}
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


def main() -> None:
    options = parser(__doc__, "anchored_adamw")
    options.add_argument("--rounds", type=int, default=30, help="steps of each side (default: 30)")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    run = describe_run(arguments.threads)
    figures, cases = [], []
    for name, (shape, count) in MATRICES.items():
        for gradient, dtype in GRADIENTS.items():
            costs = in_turn(sides(shape, count, dtype), arguments.rounds)
            seconds = {side: least(each).wall / (count * shape[0] * shape[1]) for side, each in costs.items()}
            cases.append({"matrices": name, "shape": shape, "count": count, "gradient": gradient, "seconds": seconds})
            for side, bar in (("native", BAR), ("native, compact", None)):
                if side in seconds:
                    what = f"{name} {shape[0]} x {shape[1]}, gradient {gradient}; {seconds[side] * 1e9:.2f} ns a weight"
                    figure = f"anchored_adamw{side.removeprefix('native')}, times faster than fused AdamW and lerp_"
                    ratio = at_least(seconds["fused, lerp_"] / seconds[side], bar)
                    figures.append(Figure(figure, what, *ratio, command()))
    finish(arguments.out, run, figures, {"cases": cases})


if __name__ == "__main__":
    main()
