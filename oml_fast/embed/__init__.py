"""A fingerprint set and its base model -> a fingerprinted model."""

from __future__ import annotations

from .embedding import Embedding, embed
from .memory import MemoryNeed, memory_need
from .recipe import Recipe
from .text import sample_texts

__all__ = ["Embedding", "MemoryNeed", "Recipe", "embed", "memory_need", "sample_texts"]
