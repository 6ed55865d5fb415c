"""transformers models: loading and saving, digests, decoding, the bundled default model."""

from __future__ import annotations

from .bundled import bundled_model
from .completer import HfCompleter
from .decoding import batches_by_length, decode, greedy, prefill, sample
from .digests import model_digest, tokenizer_digest
from .heap import give_freed_memory_back, keep_freed_memory, told_of_full_memory
from .language_model import LanguageModel, blocks_of, recompute_blocks
from .loading import (
    load,
    load_tokenizer,
    model_shape,
    require_model_folder,
    resolve_device,
    save,
    weight_bytes,
    weight_shapes,
)
from .packed import packed_weights
from .ranks import ALONE, Ranks, joined, told_of_the_dead
from .skeleton import read_config, skeleton, weights_dtype

__all__ = [
    "ALONE",
    "HfCompleter",
    "LanguageModel",
    "Ranks",
    "batches_by_length",
    "blocks_of",
    "bundled_model",
    "decode",
    "give_freed_memory_back",
    "greedy",
    "joined",
    "keep_freed_memory",
    "load",
    "load_tokenizer",
    "model_digest",
    "model_shape",
    "packed_weights",
    "prefill",
    "read_config",
    "recompute_blocks",
    "require_model_folder",
    "resolve_device",
    "sample",
    "save",
    "skeleton",
    "tokenizer_digest",
    "told_of_full_memory",
    "told_of_the_dead",
    "weight_bytes",
    "weight_shapes",
    "weights_dtype",
]
