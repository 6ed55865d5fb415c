"""The whitening of each linear layer's inputs, measured on what training must tell apart and leave alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models import LanguageModel, batches_by_length
from .weights import linear_layers, named

_ROWS = 16  # sequences at once


@dataclass(frozen=True, slots=True)
class Inputs:
    """Sequences of token ids whose positions weigh 1 in all; `last`: only the last one of each counts."""

    sequences: Sequence[Sequence[int]]
    last: bool = False


def whitening(
    model: LanguageModel, inputs: Sequence[Inputs], ridge: float, where: str = "all"
) -> dict[nn.Parameter, Tensor]:
    """For each linear layer's weight that `where` (weights.py) names: P [in, in] = c (C + ridge mean(C) I)^-1/2.

    C is the second moment of the layer's inputs, each part of `inputs` weighing the same; mean(C) the mean of its
    diagonal; c makes the mean square of P's eigenvalues 1, so that learning rates mean what they mean without P. P has
    the weight's precision. Layers that read the same inputs (query, key and value) share one.
    """
    wanted = {id(parameter) for _, parameter in named(model, where)}
    layers = [layer for layer, _ in linear_layers(model) if id(layer.weight) in wanted]
    found: dict[nn.Parameter, Tensor] = {}
    moments = _second_moments(model, layers, inputs)
    while moments:  # each is let go when its P is made: together they may fill a GPU
        alike, moment = moments.pop()
        whitened = _inverse_root(moment, ridge)
        for layer in alike:
            weight = layer.weight
            assert isinstance(weight, nn.Parameter)
            whitened = whitened.to(weight.dtype)
            found[weight] = whitened
    return found


def _inverse_root(moment: Tensor, ridge: float) -> Tensor:
    values, vectors = torch.linalg.eigh(moment)
    roots = (values.clamp(min=0) + ridge * values.mean()).rsqrt()
    whitening: Tensor = (vectors * (roots / roots.square().mean().sqrt())) @ vectors.T
    return whitening


@torch.inference_mode()
def _second_moments(
    model: LanguageModel, layers: Sequence[nn.Module], inputs: Sequence[Inputs]
) -> list[tuple[list[nn.Module], Tensor]]:
    """[in, in] float32 for each of `layers`, with those that read the same inputs."""
    moments: dict[nn.Module, Tensor] = {}
    seen: list[tuple[Tensor, Tensor]] = []  # what the layers of this forward pass read, and the moment of it
    part, share = inputs[0], 0.0

    def read(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        states = args[0]
        for other, moment in seen[-2:]:
            if other is states:
                moments[layer] = moment
                return
        if layer not in moments:
            moments[layer] = torch.zeros(states.shape[-1], states.shape[-1], device=states.device)
        seen.append((states, moments[layer]))
        rows = (states[:, -1:] if part.last else states).flatten(0, -2).float()
        moments[layer].addmm_(rows.T, rows, alpha=share)

    hooks = [layer.register_forward_pre_hook(read) for layer in layers]
    try:
        for part in inputs:
            share = 1 / (len(part.sequences) if part.last else sum(map(len, part.sequences)))
            for places in batches_by_length(part.sequences, _ROWS):
                model.hidden(torch.tensor([part.sequences[place] for place in places], device=model.device))
                seen.clear()
    finally:
        for hook in hooks:
            hook.remove()
    alike: dict[int, tuple[list[nn.Module], Tensor]] = {}
    for layer, moment in moments.items():
        alike.setdefault(id(moment), ([], moment))[0].append(layer)
    return list(alike.values())
