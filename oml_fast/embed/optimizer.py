"""AdamW on the changes of the weights, with a pull of each change toward nothing after each step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .weights import TrainedWeight


class AnchoredAdamW:
    """AdamW on the changes, in float32; every step ends with change <- (1 - pull) change, after AdamW's update.

    A weight is its base plus its change: the pull takes it a share of the way back to its base. [SF 3.2] writes this
    averaging; its published code lets the next step overwrite it, so that only the last one counts
    (docs/embedding.md). `pull` and `learning_rate` may be set between steps.
    """

    def __init__(self, weights: Sequence[TrainedWeight], learning_rate: float, pull: float) -> None:
        self._weights = weights
        self.pull = pull
        values = [value for weight in weights for value in weight.change.values]
        self._adamw = torch.optim.AdamW(values, lr=learning_rate, weight_decay=0.0, fused=True)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self._adamw.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        for group in self._adamw.param_groups:
            group["lr"] = value

    @torch.no_grad()
    def step(self) -> None:
        """One update from the parameters' gradients, which are then dropped; the new weights are written."""
        for weight in self._weights:
            weight.take_gradient()
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        for weight in self._weights:
            if self.pull:
                weight.change.shrink(1 - self.pull)
            weight.write()
