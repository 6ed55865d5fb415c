"""transformers models: loading and saving, digests, decoding, the bundled default model."""

from __future__ import annotations

from .bundled import bundled_model
from .completer import HfCompleter
from .decoding import batches_by_length, decode, greedy, prefill, sample
from .digests import model_digest, tokenizer_digest
from .language_model import LanguageModel
from .loading import load, load_tokenizer, model_shape, require_model_folder, resolve_device, save, weight_shapes
from .packed import packed_weights

__all__ = [
    "HfCompleter",
    "LanguageModel",
    "batches_by_length",
    "bundled_model",
    "decode",
    "greedy",
    "load",
    "load_tokenizer",
    "model_digest",
    "model_shape",
    "packed_weights",
    "prefill",
    "require_model_folder",
    "resolve_device",
    "sample",
    "save",
    "tokenizer_digest",
    "weight_shapes",
]
