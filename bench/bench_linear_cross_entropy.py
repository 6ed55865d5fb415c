"""linear_cross_entropy, forward and backward, against whole logits: the bundled model's head, bfloat16.

`pytest --benchmark bench/bench_linear_cross_entropy.py` times it; `python bench/bench_linear_cross_entropy.py` prints
ratios, measured in turn within one run, and writes bench/results/linear_cross_entropy.json. 64 fingerprints have 64
rows with one response id each (R = 1), 1,024 with 16 (R = 16); keys of 16 ids make [64, 16] positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from allocations import peak_bytes
from baselines_losses import Loss, cross_entropies, full_logits, plain
from common import Figure, at_least, at_most, command, describe_run, finish, in_turn, least, one_thread, parser, start
from shapes import MODELS
from torch import Tensor

from oml_fast.ops import linear_cross_entropy

SHAPE = MODELS["SmolLM2-135M"]
POSITIONS = 16


def tensors(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """[N, H], [V, H], [N]: logits with a deviation of 3, as models have them."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, SHAPE.hidden, generator=generator).bfloat16()
    classifier = (3 / SHAPE.hidden**0.5 * torch.randn(SHAPE.vocab, SHAPE.hidden, generator=generator)).bfloat16()
    targets = torch.randint(SHAPE.vocab, (rows,), generator=generator)
    return hidden.requires_grad_(), classifier.requires_grad_(), targets


def ours(hidden: Tensor, classifier: Tensor, targets: Tensor) -> Tensor:
    return linear_cross_entropy(hidden, classifier, targets).loss


def sides(rows: int) -> dict[str, Callable[[], None]]:
    """Each way as a call that computes the loss and both gradients."""
    given = tensors(rows)
    losses = {"ours": ours, **cross_entropies("cpu")}
    if rows == 64:
        losses["full logits"] = full_logits(POSITIONS)

    def step(loss: Loss) -> None:
        torch.autograd.grad(loss(*given), given[:2])

    return {name: lambda loss=loss: step(loss) for name, loss in losses.items()}  # type: ignore[misc]


def assert_agree(rows: int) -> None:
    """Loss and gradients are those of the plain way, as far as bfloat16 can tell."""
    given = tensors(rows)
    found, right = (torch.autograd.grad(loss(*given), given[:2]) for loss in (ours, plain))
    for a, b in zip(found, right, strict=True):
        assert (a - b).float().norm() < 0.01 * b.float().norm()
    torch.testing.assert_close(ours(*given), plain(*given), rtol=1e-3, atol=0)


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
    arguments = options.parse_args()
    start(arguments.threads)
    run = describe_run(arguments.threads)
    figures, cases = [], {}
    for rows, most in ((64, 1.1), (1024, 1.3)):
        assert_agree(rows)
        calls = sides(rows)
        costs = {name: least(all_costs) for name, all_costs in in_turn(calls, arguments.rounds).items()}
        peaks = {name: peak_bytes(call, uncounted(rows)) for name, call in calls.items()}
        cases[str(rows)] = {name: {"seconds": costs[name].cpu, "extra_bytes": peaks[name]} for name in calls}
        figures += _figures(rows, most, cases[str(rows)])
    finish(arguments.out, run, figures, {"vocab": SHAPE.vocab, "hidden": SHAPE.hidden, "cases": cases})


def _figures(rows: int, most: float, case: dict[str, dict[str, float]]) -> list[Figure]:
    setting = f"{rows} rows, {SHAPE.hidden} x {SHAPE.vocab:,}, bfloat16, forward and backward, least CPU time"
    found = []
    for name, measured in case.items():
        if name == "ours":
            continue
        time = case["ours"]["seconds"] / measured["seconds"]
        memory = case["ours"]["extra_bytes"] / measured["extra_bytes"]
        if name == "full logits":
            value = at_least(1 / time, 8)
            found.append(Figure("linear_cross_entropy, times faster than full logits", setting, *value, command()))
            continue
        bars = (most, 0.6 if rows == 1024 else None) if name == "plain" else (None, None)
        for what, ratio, bar in (("time", time, bars[0]), ("extra memory", memory, bars[1])):
            figure = f"linear_cross_entropy, {what} over {name}"
            found.append(Figure(figure, setting, *at_most(ratio, bar, 2, "x"), command()))
    return found


if __name__ == "__main__":
    main()
