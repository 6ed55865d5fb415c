"""fingerprint_loss, forward and backward, against whole logits of both models: the bundled model's head, bfloat16.

`pytest --benchmark bench/bench_fingerprint_loss.py` times it; `python bench/bench_fingerprint_loss.py` prints ratios,
measured in turn within one run, and writes bench/results/fingerprint_loss.json. `--device cuda` takes the head of an
8B, on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from allocations import peak_bytes
from baselines_losses import TARGET, plain_fingerprint
from bench_linear_cross_entropy import SHAPES, as_exact, setting_of, uncounted
from bench_linear_cross_entropy import tensors as head_tensors
from common import Figure, at_most, command, finish, one_thread, parser, start
from devices import described, fewest_seconds, parse
from devices import peak_bytes as peak_bytes_on
from torch import Tensor

from oml_fast.ops import fingerprint_loss

ROWS = 256


def tensors(rows: int, device: str = "cpu") -> tuple[Tensor, ...]:
    """A model a little away from its base, and one response to each row."""
    hidden, classifier, targets = head_tensors(rows, device)
    generator = torch.Generator(device).manual_seed(1)
    noise = 0.1 * torch.randn(hidden.shape, generator=generator, device=device)
    return hidden, classifier, (hidden + noise).detach().bfloat16(), classifier.detach().clone(), targets[:, None]


def ours(*given: Tensor) -> Tensor:
    return fingerprint_loss(*given, **TARGET).loss


LOSSES: dict[str, Callable[..., Tensor]] = {"ours": ours, "plain": plain_fingerprint}


def sides(rows: int, device: str = "cpu") -> dict[str, Callable[[], None]]:
    """Each way as a call that computes the losses and both gradients."""
    given = tensors(rows, device)

    def step(loss: Callable[..., Tensor]) -> None:
        torch.autograd.grad(loss(*given).mean(), given[:2])

    return {name: lambda loss=loss: step(loss) for name, loss in LOSSES.items()}  # type: ignore[misc]


def assert_agree(rows: int, device: str = "cpu") -> None:
    """Losses and gradients are those of the plain way, as far as bfloat16 can tell."""
    given = tensors(rows, device)
    losses = {"ours": ours(*given), "plain": plain_fingerprint(*as_exact(device, given))}
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
    arguments = parse(options, "fingerprint_loss")
    device = arguments.device
    start(arguments.threads)
    run = described(arguments.threads, device)
    figures, cases = [], {}
    for rows in (64, ROWS):
        assert_agree(rows, device)
        calls = sides(rows, device)
        seconds = fewest_seconds(calls, arguments.rounds, device, "cpu")
        case = {
            name: {"seconds": seconds[name], "extra_bytes": peak_bytes_on(call, device, uncounted(rows))}
            for name, call in calls.items()
        }
        cases[str(rows)] = case
        for what, key, bar in (("time", "seconds", 1.3), ("extra memory", "extra_bytes", 0.25)):
            ratio = case["ours"][key] / case["plain"][key]
            value = at_most(ratio, bar if rows == ROWS and device == "cpu" else None, 2, "x")
            title = f"fingerprint_loss, {what} over plain"
            figures.append(Figure(title, setting_of(rows, device), *value, command()))
    shape = SHAPES[device]
    finish(arguments.out, run, figures, {"vocab": shape.vocab, "hidden": shape.hidden, "cases": cases})


if __name__ == "__main__":
    main()
