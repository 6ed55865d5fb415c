"""Magnitude pruning: the smallest weights of each linear layer become zero [Han et al. 2015, arXiv 1506.02626].

One shot, unstructured, layer by layer, without the retraining that the paper adds. Linear layers of the blocks;
embeddings, head, norms and biases stay.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ...models import HfCompleter
from ..attack import Attack, Attacked, Scene
from .rounding import change_blocks

SHARES = (0.1, 0.2, 0.3, 0.5)


def prune(weight: Tensor, share: float) -> Tensor:
    """[out, in] -> the same with the smallest round(share * out * in) weights zero; of equals, the first ones."""
    flat = weight.flatten()
    smallest = torch.sort(flat.abs(), stable=True).indices[: round(share * flat.numel())]
    return flat.index_fill(0, smallest, 0.0).view_as(weight)


def _prune(scene: Scene, share: float) -> Attacked:
    model, moved = change_blocks(scene, partial(prune, share=share), f"{share:.0%} pruned")
    return Attacked(HfCompleter(model), model, {"share_pruned": share, "relative_change": moved})


ATTACKS: tuple[Attack, ...] = tuple(
    Attack(
        name=f"pruning/{share:g}",
        cost="no data, no forward pass: one pass over the weights",
        run=partial(_prune, share=share),
        strength=share,  # the share pruned, not the share kept
    )
    for share in SHARES
)
