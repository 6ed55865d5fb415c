"""AdamW on the changes of the weights, with a pull of each change toward nothing after each step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from .base import first_row
from .weights import TrainedWeight

_SEED_STEP = 1 << 20  # between the weights of one seed and those of the next


class AnchoredAdamW:
    """AdamW on the changes, in float32; every step ends with change <- (1 - pull) change, after AdamW's update.

    A weight is its base plus its change: the pull takes it a share of the way back to its base. [SF 3.2] writes this
    averaging; its published code lets the next step overwrite it, so that only the last one counts
    (docs/embedding.md). Weights without a change of their own are trained as they are, weight and moments in bfloat16,
    rounded stochastically by `seed`. `pull`, `learning_rate` and `steps`, those taken so far, may be set between steps.
    """

    def __init__(self, weights: Sequence[TrainedWeight], learning_rate: float, pull: float, seed: int = 0) -> None:
        self._weights, self._seed = weights, seed
        self._moments = [
            [(torch.zeros_like(value), torch.zeros_like(value)) for value in _trained(weight)] for weight in weights
        ]
        self.learning_rate, self.pull, self.steps = learning_rate, pull, 0

    @torch.no_grad()
    def step(self) -> None:
        """One update from the parameters' gradients, which are then dropped; the new weights are written."""
        self.steps += 1
        for number, (weight, moments) in enumerate(zip(self._weights, self._moments, strict=True)):
            gradient = weight.take_gradient()
            if gradient is None:
                weight.shrink(1 - self.pull)
            elif weight.change is None:
                self._step_compact(number, weight, gradient)
            else:
                each = zip(weight.change.values, weight.change.gradients(gradient), moments, strict=True)
                where = (weight.base(), weight.rows) if weight.in_place else ()
                for (value, own, (first, second)), pulled in zip(each, weight.change.pulled(), strict=True):
                    pull = self.pull if pulled else 0.0
                    self._step(value, own.contiguous(), first, second, *where, pull=pull)
            if not (weight.in_place and gradient is not None):
                weight.write()

    def _step_compact(self, number: int, weight: TrainedWeight, gradient: Tensor) -> None:
        ((first, second),) = self._moments[number]
        rows = weight.rows
        offset = first_row(weight.parameter) * (rows[0].numel() if len(rows) else 0)
        seed = self._seed * _SEED_STEP + number
        self._step(None, gradient.contiguous(), first, second, weight.base(), rows, seed=seed, offset=offset)

    def _step(self, *tensors: Tensor | None, pull: float | None = None, seed: int = 0, offset: int = 0) -> None:
        ops.anchored_adamw(
            *tensors,  # type: ignore[arg-type]
            step=self.steps,
            learning_rate=self.learning_rate,
            pull=self.pull if pull is None else pull,
            seed=seed,
            offset=offset,
        )

    def tensors(self) -> dict[str, Tensor]:
        """All that a step reads and leaves, by name: what is trained and its moments."""
        return {
            f"{number}.{place}.{name}": tensor
            for number, (weight, moments) in enumerate(zip(self._weights, self._moments, strict=True))
            for place, (value, (first, second)) in enumerate(zip(_trained(weight), moments, strict=True))
            for name, tensor in (("value", value), ("first", first), ("second", second))
        }


def _trained(weight: TrainedWeight) -> tuple[Tensor, ...]:
    return (weight.rows,) if weight.change is None else weight.change.values
