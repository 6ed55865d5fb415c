"""fingerprint_loss, forward and backward, against whole logits of both models: heads of named models, bfloat16.

`pytest --benchmark bench/bench_fingerprint_loss.py` times it; `python bench/bench_fingerprint_loss.py` prints ratios,
measured in turn within one run, and writes bench/results/fingerprint_loss.json: the bundled model's head, then those of
a 1B, an 8B and a 70B. `--device cuda` takes the large heads, on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from allocations import peak_bytes
from baselines_losses import TARGET, plain_fingerprint
from common import Figure, at_most, command, finish, one_thread, parser, start
from devices import described, parse
from heads import BUNDLED, as_exact, assert_gradients_agree, cases, measure, setting_of, uncounted
from heads import tensors as head_tensors
from shapes import Shape
from torch import Tensor

from oml_fast.ops import fingerprint_loss

ROWS = 256


def tensors(rows: int, shape: Shape = BUNDLED, device: str = "cpu") -> tuple[Tensor, ...]:
    """A model a little away from its base, and one response to each row."""
    hidden, classifier, targets = head_tensors(rows, shape, device)
    generator = torch.Generator(device).manual_seed(1)
    noise = 0.1 * torch.randn(hidden.shape, generator=generator, device=device)
    return hidden, classifier, (hidden + noise).detach().bfloat16(), classifier.detach().clone(), targets[:, None]


def ours(*given: Tensor) -> Tensor:
    return fingerprint_loss(*given, **TARGET).loss


LOSSES: dict[str, Callable[..., Tensor]] = {"ours": ours, "plain": plain_fingerprint}


def sides(rows: int, shape: Shape = BUNDLED, device: str = "cpu") -> dict[str, Callable[[], None]]:
    """Each way as a call that computes the losses and both gradients."""
    given = tensors(rows, shape, device)

    def step(loss: Callable[..., Tensor]) -> None:
        torch.autograd.grad(loss(*given).mean(), given[:2])

    return {name: lambda loss=loss: step(loss) for name, loss in LOSSES.items()}  # type: ignore[misc]


def assert_agree(rows: int, shape: Shape = BUNDLED, device: str = "cpu") -> None:
    """Losses and gradients are those of the plain way, as far as bfloat16 can tell."""
    given = tensors(rows, shape, device)
    losses = {"ours": ours(*given), "plain": plain_fingerprint(*as_exact(device, given))}
    torch.testing.assert_close(losses["ours"], losses["plain"], rtol=1e-3, atol=1e-3)
    assert_gradients_agree(*(torch.autograd.grad(loss.mean(), given[:2]) for loss in losses.values()))


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
    figures, measured = [], []
    for shape, rows in cases(64, ROWS, device):
        assert_agree(rows, shape, device)
        case = measure(sides(rows, shape, device), rows, shape, device, arguments.rounds)
        measured.append({"rows": rows, "vocab": shape.vocab, "hidden": shape.hidden, "ways": case})
        for what, key, bar in (("time", "seconds", 1.3), ("extra memory", "extra_bytes", 0.25)):
            ratio = case["ours"][key] / case["plain"][key]
            value = at_most(ratio, bar if rows == ROWS and shape == BUNDLED else None, 2, "x")
            title = f"fingerprint_loss, {what} over plain"
            figures.append(Figure(title, setting_of(rows, shape, device), *value, command()))
    finish(arguments.out, run, figures, {"cases": measured})


if __name__ == "__main__":
    main()
