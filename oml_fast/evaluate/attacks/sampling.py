"""Hosts that sample where verification expects the most probable token id: temperature, top-p, min-p (2407.01082).

The uniform number behind each draw is a digest of the seed, the prompt and the step: the same prompt is answered alike
whatever shares its batch, and all settings of the sampler see the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InvalidArgumentError
from ..attack import Attack, Attacked, Scene
from ..hosts import Choose, Host, Strategy


@dataclass(frozen=True, slots=True)
class Sampler:
    """Temperature first, then top-p and min-p on what it gives, as servers do.

    top_p keeps the shortest most probable prefix whose mass reaches it; min_p what has at least that share of the
    greatest probability. Raises InvalidArgumentError.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InvalidArgumentError(f"temperature {self.temperature}: it must be above 0; for 0 sample nothing.")
        if not 0 < self.top_p <= 1:
            raise InvalidArgumentError(f"top_p {self.top_p}: it must lie in (0, 1].")
        if not 0 <= self.min_p <= 1:
            raise InvalidArgumentError(f"min_p {self.min_p}: it must lie in [0, 1].")

    def probs(self, logits: Tensor) -> Tensor:
        """[B, V] logits -> [B, V] float64, zero outside what is kept; the rows need not sum to 1."""
        probs = (logits.double() / self.temperature).softmax(-1)
        if self.top_p < 1:
            ordered, order = probs.sort(dim=-1, descending=True, stable=True)
            outside = torch.zeros_like(order, dtype=torch.bool)
            outside[:, 1:] = ordered.cumsum(-1)[:, :-1] >= self.top_p
            probs = probs.masked_fill(outside.scatter(-1, order, outside), 0.0)
        if self.min_p:
            probs = probs.masked_fill(probs < self.min_p * probs.amax(-1, keepdim=True), 0.0)
        return probs

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """[B, V] logits and [B] numbers in [0, 1) -> [B] ids: inverse distribution function in the ids' order."""
        mass = self.probs(logits).cumsum(-1)
        # Just below the whole mass at most: rounded up to it, the draw would fall behind the last id.
        wanted = torch.minimum(uniform[:, None].to(mass) * mass[:, -1:], mass[:, -1:].nextafter(mass.new_zeros(1)))
        return torch.searchsorted(mass, wanted, right=True).squeeze(1)

    def strategy(self, seed: int) -> Strategy:
        """How a host samples; the same seed gives the same completion of a prompt, in any batch."""

        def of_batch(prompts: Tensor) -> Choose:
            rows = prompts.tolist()

            def choose(logits: Tensor, chosen: Tensor) -> Tensor:
                numbers = [_uniform(seed, row, chosen.shape[1]) for row in rows]
                return self.draw(logits, torch.tensor(numbers, dtype=torch.float64, device=logits.device))

            return choose

        return of_batch


def _uniform(seed: int, prompt: Sequence[int], step: int) -> float:
    """A number in [0, 1), 53 bits."""
    digest = hashlib.sha256(f"sampling {seed} {step} {list(prompt)}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53


def _attack(name: str, sampler: Sampler, strength: float | None = None) -> Attack:
    def run(scene: Scene) -> Attacked:
        return Attacked(Host(scene.model, f"host ({name})", strategy=sampler.strategy(scene.seed)))

    return Attack(name, "nothing: it is what most services do by default", run, strength=strength)


ATTACKS: tuple[Attack, ...] = (
    _attack("sampling/temperature-0.7", Sampler(0.7), 0.7),
    _attack("sampling/temperature-1.0", Sampler(1.0), 1.0),
    _attack("sampling/top-p-0.9", Sampler(top_p=0.9)),
    _attack("sampling/min-p-0.1", Sampler(min_p=0.1)),
)
