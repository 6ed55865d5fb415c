"""A fingerprint set and its base model -> a fingerprinted model."""

from __future__ import annotations

from .embedding import Embedding, embed
from .presets import PRESETS
from .recipe import Recipe
from .text import sample_texts

__all__ = ["PRESETS", "Embedding", "Recipe", "embed", "sample_texts"]
