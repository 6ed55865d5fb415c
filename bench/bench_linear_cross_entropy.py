"""linear_cross_entropy, forward and backward, against whole logits: heads of named models, bfloat16.

`pytest --benchmark bench/bench_linear_cross_entropy.py` times it; `python bench/bench_linear_cross_entropy.py` prints
ratios, measured in turn within one run, and writes bench/results/linear_cross_entropy.json: the bundled model's head,
then those of a 1B, an 8B and a 70B. 64 fingerprints have 64 rows with one response id each (R = 1), 1,024 with 16 (R =
16); keys of 16 ids make [64, 16] positions. `--device cuda` takes the large heads, on a GPU, and beside them the floor:
the three matrix products that no way can do without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from allocations import peak_bytes
from baselines_losses import Loss, cross_entropies, full_logits, plain
from common import Figure, at_least, at_most, command, finish, one_thread, parser, start
from devices import described, parse
from heads import BUNDLED, LARGE, as_exact, assert_gradients_agree, cases, measure, setting_of, tensors, uncounted
from shapes import Shape
from torch import Tensor

from oml_fast.ops import linear_cross_entropy

POSITIONS = 16
SMALL_ONLY = ("torch, chunked", "full logits")  # ways that take minutes a call with a large head on a CPU
BARS = {64: (1.1, None), 1024: (1.3, 0.6)}  # by rows: most time and extra memory, over plain
FLOOR, FLOOR_BAR = "its three products alone", 1.3


def ours(hidden: Tensor, classifier: Tensor, targets: Tensor) -> Tensor:
    return linear_cross_entropy(hidden, classifier, targets).loss


@torch.no_grad()
def products(hidden: Tensor, classifier: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and what the gradients are made of."""
    logits = hidden @ classifier.T
    return logits @ classifier, logits.T @ hidden


def sides(rows: int, shape: Shape = BUNDLED, device: str = "cpu") -> dict[str, Callable[[], Any]]:
    """Each way as a call that computes the loss and both gradients."""
    given = tensors(rows, shape, device)
    losses = {"ours": ours, **cross_entropies(device)}
    if rows == 64:
        losses["full logits"] = full_logits(POSITIONS)
    if device == "cpu" and shape in LARGE:
        losses = {name: loss for name, loss in losses.items() if name not in SMALL_ONLY}

    def step(loss: Loss) -> None:
        torch.autograd.grad(loss(*given), given[:2])

    calls: dict[str, Callable[[], Any]] = {name: lambda loss=loss: step(loss) for name, loss in losses.items()}
    return calls | ({FLOOR: lambda: products(*given[:2])} if device == "cuda" else {})


def assert_agree(rows: int, shape: Shape = BUNDLED, device: str = "cpu") -> None:
    """Loss and gradients are those of the plain way, as far as bfloat16 can tell."""
    given = tensors(rows, shape, device)
    losses = ours(*given), plain(*as_exact(device, given))
    assert_gradients_agree(*(torch.autograd.grad(loss, given[:2]) for loss in losses))
    torch.testing.assert_close(*losses, rtol=1e-3, atol=0)


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
    figures, measured = [], []
    for shape, rows in cases(64, 1024, device):
        assert_agree(rows, shape, device)
        case = measure(sides(rows, shape, device), rows, shape, device, arguments.rounds)
        figures += _figures(rows, shape, case, device)
        measured.append({"rows": rows, "vocab": shape.vocab, "hidden": shape.hidden, "ways": case})
    finish(arguments.out, run, figures, {"cases": measured})


def _figures(rows: int, shape: Shape, case: dict[str, dict[str, float]], device: str) -> list[Figure]:
    setting, barred = setting_of(rows, shape, device), shape == BUNDLED
    found = []
    for name, measured in case.items():
        if name == "ours":
            continue
        time = case["ours"]["seconds"] / measured["seconds"]
        memory = case["ours"]["extra_bytes"] / measured["extra_bytes"]
        if name == "full logits":
            value = at_least(1 / time, 8 if barred else None)
            found.append(Figure("linear_cross_entropy, times faster than full logits", setting, *value, command()))
            continue
        if name == FLOOR:
            value = at_most(time, FLOOR_BAR, 2, "x")
            found.append(Figure(f"linear_cross_entropy, time over {name}", setting, *value, command()))
            continue
        bars = BARS[rows] if name == "plain" and barred else (None, None)
        for what, ratio, bar in (("time", time, bars[0]), ("extra memory", memory, bars[1])):
            figure = f"linear_cross_entropy, {what} over {name}"
            found.append(Figure(figure, setting, *at_most(ratio, bar, 2, "x"), command()))
    return found


if __name__ == "__main__":
    main()
