"""A base model and keys -> a fingerprint set, by batched perinucleus sampling."""

from __future__ import annotations

from .generation import Generation, generate
from .keys import read_keys
from .presets import PRESETS

__all__ = ["PRESETS", "Generation", "generate", "read_keys"]
