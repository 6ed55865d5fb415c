"""The attacks, a small module each. `ALL` is the battery in the order of its report; `QUICK` are six kinds of it."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import InvalidArgumentError
from ..attack import Attack
from . import (
    collusion,
    distillation,
    dpo,
    ensemble,
    gguf_rounding,
    harvesting,
    lora,
    meraser,
    merging,
    perplexity_filter,
    prefill,
    projection,
    prompts,
    pruning,
    rounding,
    sampling,
    scaling,
    sft,
    suppression,
)

_MODULES = (
    prompts,
    prefill,
    sampling,
    rounding,
    gguf_rounding,
    pruning,
    scaling,
    merging,
    sft,
    lora,
    dpo,
    suppression,
    projection,
    perplexity_filter,
    harvesting,
    ensemble,
    collusion,
    meraser,
    distillation,
)
ALL: tuple[Attack, ...] = tuple(attack for module in _MODULES for attack in module.ATTACKS)
QUICK = ("prompts", "rounding/int4", "merge/linear-0.7", "sft/2e-5", "suppress/gated-0.9", "suppress/top-1")


def choose(names: Sequence[str] = ()) -> tuple[Attack, ...]:
    """The attacks of these names or families, in the order of `ALL`; all where none is named. InvalidArgumentError."""
    known = {attack.name for attack in ALL} | {attack.family for attack in ALL}
    if unknown := [name for name in names if name not in known]:
        families = ", ".join(dict.fromkeys(attack.family for attack in ALL))
        raise InvalidArgumentError(
            f"attack {unknown[0]!r} is unknown: name a family ({families}) or one of it, as in 'sft/2e-5'; "
            "oml-fast evaluate robustness --list shows all."
        )
    return tuple(attack for attack in ALL if not names or attack.name in names or attack.family in names)
