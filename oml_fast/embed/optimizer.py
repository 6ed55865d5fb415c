"""AdamW on float32 masters, with a pull toward the base weights after each step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class AnchoredAdamW:
    """AdamW whose every step ends with w <- w + pull (base - w), w being the weight after AdamW's update.

    `pull` may be changed between steps, unless it began as 0, when no base weights are kept. Weights of lower precision
    get float32 masters; the model's own are rounded from them. [SF 3.2] writes this averaging; its published code lets
    the next step overwrite it, so that only the last one counts (docs/embedding.md).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float, pull: float) -> None:
        self._parameters = [p for p in parameters if p.requires_grad]
        self._masters = [p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in self._parameters]
        self._base = [p.detach().clone() for p in self._parameters] if pull else []
        self.pull = pull
        self._adamw = torch.optim.AdamW(self._masters, lr=learning_rate, weight_decay=0.0, fused=True)

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
        """One update from the parameters' gradients, which are then dropped."""
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            if parameter is not master:
                master.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        for place, (parameter, master) in enumerate(zip(self._parameters, self._masters, strict=True)):
            if self.pull:
                master.lerp_(self._base[place].to(master.dtype), self.pull)
            if parameter is not master:
                parameter.copy_(master)
