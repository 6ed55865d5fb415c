"""How long a step takes: from a data sheet, or from timing a few blocks here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..embed.recipe import Recipe
from ..embed.weights import linear_layers, named
from ..embed.workload import Workload
from ..models import LanguageModel, skeleton, weights_dtype
from .dry_run import Cost, least_depth
from .machines import Machine
from .step import Step

# Shares of the data sheet's numbers that a good training reaches. Assumed: not measured on a GPU yet.
UTILISATION, STREAMED = 0.4, 0.8
# Of the eigenvectors that the whitening takes: operations for each n**3, and the share of the data sheet's operations.
_EIGH, _EIGH_UTILISATION = 9, 0.01
_DISK = 2e9  # bytes a second, of a local NVMe disk
_ROUNDS = 3
_MOST_BLOCKS, _MOST_BYTES = 8, 2**28  # that are timed beyond the least
_MOST_WIDTH = 2048  # of a matrix whose eigenvectors are timed


@dataclass(frozen=True, slots=True)
class Seconds:
    """Of one step: passes (what processes wait for each other in them included), update, and reading the base again.

    once: before the first step, for the whitening.
    """

    passes: float
    update: float
    base: float = 0.0
    once: float = 0.0

    @property
    def step(self) -> float:
        return self.passes + self.update + self.base


def on(
    machine: Machine, config: Any, cost: Cost, work: Workload, keep_base: str = "device", offload: bool = False
) -> Seconds:
    """Of a machine by its data sheet, one process a device; communication overlaps with computing.

    Micro-batches are taken to be full, which they are with sequences of any length in one row (`--packed`).
    """
    count = machine.count
    computing = cost.flops / (machine.flops * UTILISATION)
    exchanging = 0.0
    if count > 1:
        # Each pass gathers the weights twice and adds up gradients in float32.
        times = sum(part.share * part.micro_batches(count) for part in work.passes)
        exact = 4 / weights_dtype(config).itemsize
        moved = times * (2 * cost.weights + exact * cost.gradients) * (count - 1) / count
        exchanging = moved / machine.link
    flops, moved = cost.update_flops / count, cost.update_bytes / count
    update = flops / (machine.flops * UTILISATION) + moved / (machine.bandwidth * STREAMED)
    if offload:
        update = moved / machine.host
    base = {"device": 0.0, "host": cost.base / machine.host, "file": cost.base / _DISK}[keep_base] / count
    once = _EIGH * cost.cubes / (machine.flops * _EIGH_UTILISATION)
    return Seconds(max(computing, exchanging), update, base, once)


def here(
    config: Any, recipe: Recipe, work: Workload, cost: Cost, device: str = "cpu", *, recompute: bool = False
) -> Seconds:
    """Of one process on this machine: a step of models of two depths is timed, which is linear in the depth."""
    layers, low = config.get_text_config().num_hidden_layers, least_depth(recipe)
    more = max(1, min(_MOST_BLOCKS, layers - low, int(_MOST_BYTES / cost.block_weights)))
    found = [_timed(config, depth, recipe, work, device, recompute) for depth in (low, low + more)]
    passes, update = (
        at_low + (layers - low) * max(0.0, at_high - at_low) / more for at_low, at_high in zip(*found, strict=True)
    )
    once = 0.0
    if cost.cubes:
        width = min(config.get_text_config().hidden_size, _MOST_WIDTH)
        moment = torch.eye(width, device=device) + torch.rand(width, 1, device=device)
        moment = moment @ moment.T
        once = _least(lambda: torch.linalg.eigh(moment), device) * cost.cubes / width**3
    return Seconds(passes, update, once=once)


def _timed(
    config: Any, layers: int, recipe: Recipe, work: Workload, device: str, recompute: bool
) -> tuple[float, float]:
    """Seconds of a step's passes, and of its update."""
    return timed(skeleton(config, layers, device=device), recipe, work, device, recompute=recompute)


def timed(
    model: LanguageModel, recipe: Recipe, work: Workload, device: str, *, recompute: bool = False
) -> tuple[float, float]:
    """The fewest seconds of a step's passes, and of its update with the views that go with it; it changes the model.

    In place of the whitening stands one matrix of each of its sizes, which costs the same time, but less memory.
    """
    step = Step(model, recipe, work, recompute=recompute, whitened=_any_whitening(model, recipe))
    passes = sum(often * _least(compute, device) for _, often, compute in step.passes())
    update = _least(step.update, device, step.want_gradients)
    return passes, update + step.viewed * _least(step.view, device)


def _any_whitening(model: LanguageModel, recipe: Recipe) -> dict[nn.Parameter, torch.Tensor] | None:
    if not recipe.whitening:
        return None
    wanted = {id(parameter) for _, parameter in named(model, recipe.write_to)}
    sizes: dict[int, torch.Tensor] = {}
    found: dict[nn.Parameter, torch.Tensor] = {}
    for layer, turned in linear_layers(model):
        weight: Any = layer.weight
        width = weight.shape[0 if turned else 1]
        if id(weight) in wanted:
            found[weight] = sizes.setdefault(width, torch.eye(width, dtype=weight.dtype, device=weight.device))
    return found


def _least(compute: Callable[[], Any], device: str, before: Callable[[], Any] = lambda: None) -> float:
    """The fewest seconds of some runs, after one that warms up."""
    found = []
    for _ in range(1 + _ROUNDS):
        before()
        _wait(device)
        started = time.perf_counter()
        compute()
        _wait(device)
        found.append(time.perf_counter() - started)
    return min(found[1:])


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
