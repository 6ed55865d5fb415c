"""Tensors of every kind for tests of anchored_adamw, and a comparison to the last bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oml_fast.ops import anchored_adamw
from oml_fast.ops.anchored_adamw import DTYPES

# What stands in `weight`: a dtype with a change, the change alone, or the compact layout.
LAYOUTS = (*DTYPES, "change alone", "compact")
RATES = {"step": 3, "learning_rate": 1e-3, "pull": 0.01}

Tensors = dict[str, Tensor | None]


def extreme(x: Tensor) -> Tensor:
    """Zeros of both signs, subnormal, huge and tiny values among those of [n] x, at a share of the places."""
    special = torch.tensor([0.0, -0.0, 1e-45, -3e-42, 1.5e-39, 3e-38, -6e-6, 5e-8, 1e-20, -4e18, 1e30, -65504.0])
    at = torch.arange(0, len(x), 3)
    return x.index_copy(0, at, special[at % len(special)].to(x.dtype))


def case(n: int, layout: torch.dtype | str, dtype: torch.dtype, seed: int = 0, *, extremes: bool = False) -> Tensors:
    """Arguments of n elements with a gradient of `dtype`."""
    source = torch.Generator().manual_seed(seed)
    g, m, v, base, change = torch.randn(5, n, generator=source)
    g, m, v, change = g / 10, m / 30, v.square() / 100, change / 1000
    if extremes:
        g, m, v, change = (extreme(x.roll(i)).roll(-i) for i, x in enumerate((g, m, v, change)))
        v = v.abs()
    tensors: Tensors = {"change": change, "gradient": g.to(dtype), "first_moment": m, "second_moment": v}
    if layout == "compact":
        half = {name: x.bfloat16() for name, x in {"first_moment": m, "second_moment": v, "base": base}.items()}
        return tensors | half | {"change": None, "weight": (base + change).bfloat16()}
    if isinstance(layout, torch.dtype):
        tensors |= {"base": base.to(layout), "weight": torch.full((n,), torch.nan, dtype=layout)}
    return tensors


def after(tensors: Tensors, backend: str, **numbers: Any) -> Tensors:
    """Copies of the tensors after a step."""
    copies = {name: None if x is None else x.clone() for name, x in tensors.items()}
    anchored_adamw(**copies, backend=backend, **RATES | numbers)  # type: ignore[arg-type]
    return copies


def assert_same(a: Tensors, b: Tensors, where: object = "") -> None:
    """Equal to the last bit, the signs of zeros too; NaN where the other has NaN."""
    assert a.keys() == b.keys()
    for name, left in a.items():
        right = b[name]
        if left is None or right is None:
            assert left is right
            continue
        number = torch.int32 if left.dtype == torch.float32 else torch.int16
        nan = left.isnan()
        assert torch.equal(nan, right.isnan()), (where, name)
        same = left.view(number).masked_fill(nan, 0) == right.view(number).masked_fill(nan, 0)
        assert same.all(), (where, name, left[~same][:3], right[~same][:3])
