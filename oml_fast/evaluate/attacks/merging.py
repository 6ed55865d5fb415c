"""Merging the fingerprinted model with another one of the same base, as model hubs are full of.

Linear: the weighted mean of the weights [Wortsman et al. 2022, arXiv 2203.05482]; [SF] merges with the Instruct model
at 0.9, 0.7 and 0.5. The other model is here the clean base, for want of a second fine-tune: linear merging is then
exactly delta scaling, and merge/linear-0.7 the same weights as scaling/0.7.
SLERP: along the great circle, tensor by tensor [Shoemake 1985; MergeKit, arXiv 2403.13257]. The angle between a
fingerprinted tensor and the base's is mostly below a degree, where the circle is as good as its chord: expect what
linear merging does. MergeKit falls back to linear below about two degrees; here the angle is taken as it is.
Two models: the mean of two licensees' copies, which halves the delta of each and adds the other's.
"""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor

from ...errors import InvalidArgumentError
from ...models import HfCompleter
from ..attack import Attack, Attacked, Scene
from .scaling import blended, linear

LINEAR = (0.9, 0.7, 0.5)
SLERP = (0.7, 0.5)


def angle(one: Tensor, other: Tensor) -> float:
    """The angle between two tensors read as vectors, in radians, exact also near 0 and pi [Kahan 2006]; 0 for zeros.

    Norms in float64: an arc cosine would lose every angle below 0.03 degrees.
    """
    a, b = one.double(), other.double()
    lengths = float(a.norm()), float(b.norm())
    if not all(lengths):
        return 0.0
    a, b = a / lengths[0], b / lengths[1]
    return 2 * math.atan2(float((a - b).norm()), float((a + b).norm()))


def slerp(theirs: Tensor, own: Tensor, weight: float) -> Tensor:
    """Float32 tensors of one shape -> sin((1-w) A) / sin A * theirs + sin(w A) / sin A * own, A their angle.

    Exactly `own` at weight 1 and `theirs` at 0. Parallel or opposite tensors have no one great circle: those are
    merged linearly.
    """
    between = angle(theirs, own)
    sine = math.sin(between)
    if weight in (0.0, 1.0) or sine < 1e-12:
        return linear(theirs, own, weight)
    return theirs * (math.sin((1 - weight) * between) / sine) + own * (math.sin(weight * between) / sine)


def _linear(scene: Scene, weight: float) -> Attacked:
    name = f"{scene.model.name}, merged linearly at {weight:g}"
    model = blended(scene.model, scene.base, partial(linear, share=weight), name)
    return Attacked(HfCompleter(model), model, {"weight": weight})


def _slerp(scene: Scene, weight: float) -> Attacked:
    widest = 0.0

    def blend(theirs: Tensor, own: Tensor) -> Tensor:
        nonlocal widest
        widest = max(widest, angle(theirs, own))
        return slerp(theirs, own, weight)

    model = blended(scene.model, scene.base, blend, f"{scene.model.name}, merged by SLERP at {weight:g}")
    return Attacked(HfCompleter(model), model, {"weight": weight, "widest_angle_degrees": math.degrees(widest)})


def _two_models(scene: Scene) -> Attacked:
    if not scene.siblings:
        raise InvalidArgumentError("merge/two-models needs a second fingerprinted copy of the base: name a sibling.")
    name = f"{scene.model.name}, mean with {scene.siblings[0].name}"
    model = blended(scene.model, scene.siblings[0], partial(linear, share=0.5), name)
    return Attacked(HfCompleter(model), model, {"weight": 0.5})


_WITH_BASE = "the clean base; no data, no forward pass: one pass over the weights"

ATTACKS: tuple[Attack, ...] = (
    *(
        Attack(
            f"merge/linear-{weight:g}",
            f"{_WITH_BASE}. With the base it equals delta scaling",
            partial(_linear, weight=weight),
            strength=weight,
        )
        for weight in LINEAR
    ),
    *(
        Attack(f"merge/slerp-{weight:g}", _WITH_BASE, partial(_slerp, weight=weight), strength=weight)
        for weight in SLERP
    ),
    Attack(
        "merge/two-models",
        "a second fingerprinted copy of the base; no data, no forward pass: one pass over the weights",
        _two_models,
        needs=("sibling",),
    ),
)
