"""linear_cross_entropy, forward and backward, against whole logits: the bundled model's head, bfloat16.

`pytest --benchmark bench/bench_linear_cross_entropy.py` times it; `python bench/bench_linear_cross_entropy.py` prints
ratios, measured in turn within one run, and writes bench/results/linear_cross_entropy.json. 64 fingerprints have 64
rows with one response id each (R = 1), 1,024 with 16 (R = 16); keys of 16 ids make [64, 16] positions. `--device cuda`
takes the head of an 8B, on a GPU, and beside it the floor: the three matrix products that no way can do without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from allocations import peak_bytes
from baselines_losses import Loss, cross_entropies, full_logits, plain
from common import Figure, at_least, at_most, command, finish, one_thread, parser, start
from devices import described, fewest_seconds, parse
from devices import peak_bytes as peak_bytes_on
from shapes import MODELS
from torch import Tensor

from oml_fast.ops import linear_cross_entropy

SHAPES = {"cpu": MODELS["SmolLM2-135M"], "cuda": MODELS["Llama-3.1-8B"]}
SHAPE = SHAPES["cpu"]
POSITIONS = 16
FLOOR, FLOOR_BAR = "its three products alone", 1.3


def tensors(rows: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """[N, H], [V, H], [N]: logits with a deviation of 3, as models have them."""
    vocab, width, _ = SHAPES[device]
    made: dict[str, Any] = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    hidden = torch.randn(rows, width, **made).bfloat16()
    classifier = (3 / width**0.5 * torch.randn(vocab, width, **made)).bfloat16()
    targets = torch.randint(vocab, (rows,), **made)
    return hidden.requires_grad_(), classifier.requires_grad_(), targets


def ours(hidden: Tensor, classifier: Tensor, targets: Tensor) -> Tensor:
    return linear_cross_entropy(hidden, classifier, targets).loss


@torch.no_grad()
def products(hidden: Tensor, classifier: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and what the gradients are made of."""
    logits = hidden @ classifier.T
    return logits @ classifier, logits.T @ hidden


def sides(rows: int, device: str = "cpu") -> dict[str, Callable[[], Any]]:
    """Each way as a call that computes the loss and both gradients."""
    given = tensors(rows, device)
    losses = {"ours": ours, **cross_entropies(device)}
    if rows == 64:
        losses["full logits"] = full_logits(POSITIONS)

    def step(loss: Loss) -> None:
        torch.autograd.grad(loss(*given), given[:2])

    calls: dict[str, Callable[[], Any]] = {name: lambda loss=loss: step(loss) for name, loss in losses.items()}
    return calls | ({FLOOR: lambda: products(*given[:2])} if device == "cuda" else {})


def as_exact(device: str, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What the plain way is given to be compared with: float32 on a GPU, where Triton's logits are not rounded."""
    return tuple(t.float() if device == "cuda" and t.is_floating_point() else t for t in given)


def assert_agree(rows: int, device: str = "cpu") -> None:
    """Loss and gradients are those of the plain way, as far as bfloat16 can tell."""
    given = tensors(rows, device)
    losses = ours(*given), plain(*as_exact(device, given))
    found, right = (torch.autograd.grad(loss, given[:2]) for loss in losses)
    for a, b in zip(found, right, strict=True):
        assert (a - b).float().norm() < 0.01 * b.float().norm()
    torch.testing.assert_close(*losses, rtol=1e-3, atol=0)


def uncounted(rows: int) -> tuple[int, ...]:
    """Bytes of the gradients of hidden and classifier."""
    return 2 * rows * SHAPE.hidden, 2 * SHAPE.vocab * SHAPE.hidden


@pytest.mark.parametrize("side", ["ours", "plain"])
def bench_linear_cross_entropy(benchmark: Any, side: str) -> None:
    with one_thread():
        assert_agree(64)
        benchmark.extra_info["extra_bytes"] = peak_bytes(sides(64)[side], uncounted(64))
        benchmark(sides(64)[side])


def bench_memory_at_many_positions(benchmark: Any) -> None:
    """A bar that no machine's load can change."""
    with one_thread():
        calls = sides(1024)
        peaks = {name: peak_bytes(calls[name], uncounted(1024)) for name in ("ours", "plain")}
        assert peaks["ours"] <= 0.6 * peaks["plain"], peaks
        benchmark.pedantic(calls["ours"], rounds=1)


def main() -> None:
    options = parser(__doc__, "linear_cross_entropy")
    options.add_argument("--rounds", type=int, default=20, help="measurements of each side (default: 20)")
    arguments = parse(options, "linear_cross_entropy")
    device = arguments.device
    start(arguments.threads)
    run = described(arguments.threads, device)
    figures, cases = [], {}
    for rows, most in ((64, 1.1), (1024, 1.3)):
        assert_agree(rows, device)
        calls = sides(rows, device)
        seconds = fewest_seconds(calls, arguments.rounds, device, "cpu")
        peaks = {name: peak_bytes_on(call, device, uncounted(rows)) for name, call in calls.items()}
        cases[str(rows)] = {name: {"seconds": seconds[name], "extra_bytes": peaks[name]} for name in calls}
        figures += _figures(rows, most, cases[str(rows)], device)
    shape = SHAPES[device]
    finish(arguments.out, run, figures, {"vocab": shape.vocab, "hidden": shape.hidden, "cases": cases})


def setting_of(rows: int, device: str) -> str:
    """How it was measured."""
    shape, time = (
        SHAPES[device],
        "least CPU time" if device == "cpu" else "least time on the GPU; memory with gradients",
    )
    return f"{rows} rows, {shape.hidden} x {shape.vocab:,}, bfloat16, forward and backward, {time}"


def _figures(rows: int, most: float, case: dict[str, dict[str, float]], device: str) -> list[Figure]:
    setting, on_cpu = setting_of(rows, device), device == "cpu"
    found = []
    for name, measured in case.items():
        if name == "ours":
            continue
        time = case["ours"]["seconds"] / measured["seconds"]
        memory = case["ours"]["extra_bytes"] / measured["extra_bytes"]
        if name == "full logits":
            value = at_least(1 / time, 8 if on_cpu else None)
            found.append(Figure("linear_cross_entropy, times faster than full logits", setting, *value, command()))
            continue
        if name == FLOOR:
            value = at_most(time, FLOOR_BAR, 2, "x")
            found.append(Figure(f"linear_cross_entropy, time over {name}", setting, *value, command()))
            continue
        bars = (most, 0.6 if rows == 1024 else None) if name == "plain" and on_cpu else (None, None)
        for what, ratio, bar in (("time", time, bars[0]), ("extra memory", memory, bars[1])):
            figure = f"linear_cross_entropy, {what} over {name}"
            found.append(Figure(figure, setting, *at_most(ratio, bar, 2, "x"), command()))
    return found


if __name__ == "__main__":
    main()
