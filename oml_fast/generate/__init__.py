"""A base model and keys -> a fingerprint set, by batched perinucleus sampling."""

from __future__ import annotations

from .generation import Generation, Unfinished, generate, generate_shard, require_counts
from .keys import read_keys
from .presets import PRESETS
from .units import unit_files

__all__ = [
    "PRESETS",
    "Generation",
    "Unfinished",
    "generate",
    "generate_shard",
    "read_keys",
    "require_counts",
    "unit_files",
]
