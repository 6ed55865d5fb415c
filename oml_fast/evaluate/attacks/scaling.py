"""Delta scaling: base + share * (weights - base), the ruler for "persistence against the share of the delta left".

An attacker who has the clean base can do it to any degree; it is the scaling of a task vector [Ilharco et al. 2023,
arXiv 2212.04089]. More than an attack it is a measure: fine-tuning, merging and rounding all wear a delta down, and
here one number says by how much.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ...errors import InvalidArgumentError
from ...models import HfCompleter, LanguageModel
from ..attack import Attack, Attacked, Scene
from ..hosts import copy_of

SHARES = (0.9, 0.7, 0.5, 0.3, 0.1)

# One parameter of the other model and of this one, both float32 and of one shape -> what takes this one's place.
Blend = Callable[[Tensor, Tensor], Tensor]


def blended(model: LanguageModel, other: LanguageModel, blend: Blend, name: str) -> LanguageModel:
    """A copy of `model` with every parameter blended with that of `other`, in float32, rounded once to its own dtype.

    A tensor that embedding and head share is one parameter and is blended once. Raises InvalidArgumentError where the
    two models have not the same parameters.
    """
    theirs = dict(other.model.named_parameters())
    _require_alike({key: tuple(value.shape) for key, value in model.model.named_parameters()}, theirs, model, other)
    copied = copy_of(model, name)
    with torch.no_grad():
        for key, own in copied.model.named_parameters():
            own.copy_(blend(theirs[key].to(own.device).float(), own.float()))
    return copied


def linear(theirs: Tensor, own: Tensor, share: float) -> Tensor:
    """theirs + share * (own - theirs); exactly `own` at share 1 and exactly `theirs` at 0."""
    return torch.lerp(theirs, own, share)


def _require_alike(
    shapes: dict[str, tuple[int, ...]], theirs: dict[str, Tensor], model: LanguageModel, other: LanguageModel
) -> None:
    for key in sorted(shapes.keys() | theirs.keys()):
        found = tuple(theirs[key].shape) if key in theirs else None
        if shapes.get(key) != found:
            raise InvalidArgumentError(
                f"{key} is {_shape(shapes.get(key))} in {model.name} and {_shape(found)} in {other.name}: "
                "only models of one base can be merged. Name a copy of the same base."
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _scale(scene: Scene, share: float) -> Attacked:
    name = f"{scene.model.name}, {share:g} of the delta"
    model = blended(scene.model, scene.base, partial(linear, share=share), name)
    return Attacked(HfCompleter(model), model, {"share_of_delta": share})


ATTACKS: tuple[Attack, ...] = tuple(
    Attack(
        name=f"scaling/{share:g}",
        cost="the clean base; no data, no forward pass: one pass over the weights",
        run=partial(_scale, share=share),
        strength=share,
    )
    for share in SHARES
)
