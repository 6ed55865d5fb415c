"""fingerprint_loss, forward and backward, against whole logits of both models: the bundled model's head, bfloat16.

`pytest --benchmark bench/bench_fingerprint_loss.py` times it; `python bench/bench_fingerprint_loss.py` prints ratios,
measured in turn within one run, and writes bench/results/fingerprint_loss.json.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from allocations import peak_bytes
from baselines_losses import TARGET, plain_fingerprint
from bench_linear_cross_entropy import SHAPE, uncounted
from bench_linear_cross_entropy import tensors as head_tensors
from common import Figure, at_most, command, describe_run, finish, in_turn, least, one_thread, parser, start
from torch import Tensor

from oml_fast.ops import fingerprint_loss

ROWS = 256


def tensors(rows: int) -> tuple[Tensor, ...]:
    """A model a little away from its base, and one response to each row."""
    hidden, classifier, targets = head_tensors(rows)
    noise = 0.1 * torch.randn(rows, SHAPE.hidden, generator=torch.Generator().manual_seed(1))
    return hidden, classifier, (hidden + noise).detach().bfloat16(), classifier.detach().clone(), targets[:, None]


def ours(*given: Tensor) -> Tensor:
    return fingerprint_loss(*given, **TARGET).loss


LOSSES: dict[str, Callable[..., Tensor]] = {"ours": ours, "plain": plain_fingerprint}


def sides(rows: int) -> dict[str, Callable[[], None]]:
    """Each way as a call that computes the losses and both gradients."""
    given = tensors(rows)

    def step(loss: Callable[..., Tensor]) -> None:
        torch.autograd.grad(loss(*given).mean(), given[:2])

    return {name: lambda loss=loss: step(loss) for name, loss in LOSSES.items()}  # type: ignore[misc]


def assert_agree(rows: int) -> None:
    """Losses and gradients are those of the plain way, as far as bfloat16 can tell."""
    given = tensors(rows)
    losses = {name: loss(*given) for name, loss in LOSSES.items()}
    torch.testing.assert_close(losses["ours"], losses["plain"], rtol=1e-3, atol=1e-3)
    found, right = (torch.autograd.grad(loss.mean(), given[:2]) for loss in losses.values())
    for a, b in zip(found, right, strict=True):
        assert (a - b).float().norm() < 0.01 * b.float().norm()


@pytest.mark.parametrize("side", list(LOSSES))
def bench_fingerprint_loss(benchmark: Any, side: str) -> None:
    with one_thread():
        assert_agree(ROWS)
        calls = sides(ROWS)
        peaks = {name: peak_bytes(call, uncounted(ROWS)) for name, call in calls.items()}
        assert peaks["ours"] <= peaks["plain"] / 4, peaks
        benchmark.extra_info["extra_bytes"] = peaks[side]
        benchmark(calls[side])


def main() -> None:
    options = parser(__doc__, "fingerprint_loss")
    options.add_argument("--rounds", type=int, default=20, help="measurements of each side (default: 20)")
    arguments = options.parse_args()
    start(arguments.threads)
    run = describe_run(arguments.threads)
    figures, cases = [], {}
    for rows in (64, ROWS):
        assert_agree(rows)
        calls = sides(rows)
        costs = {name: least(all_costs) for name, all_costs in in_turn(calls, arguments.rounds).items()}
        case = {
            name: {"seconds": costs[name].cpu, "extra_bytes": peak_bytes(call, uncounted(rows))}
            for name, call in calls.items()
        }
        cases[str(rows)] = case
        setting = f"{rows} rows, {SHAPE.hidden} x {SHAPE.vocab:,}, bfloat16, forward and backward, least CPU time"
        for what, key, bar in (("time", "seconds", 1.3), ("extra memory", "extra_bytes", 0.25)):
            ratio = case["ours"][key] / case["plain"][key]
            value = at_most(ratio, bar if rows == ROWS else None, 2, "x")
            figures.append(Figure(f"fingerprint_loss, {what} over plain", setting, *value, command()))
    finish(arguments.out, run, figures, {"vocab": SHAPE.vocab, "hidden": SHAPE.hidden, "cases": cases})


if __name__ == "__main__":
    main()
