"""Tiny random models of several architectures: what they do to logits, and how they remember, differs."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tiny import tiny_tokenizer

from oml_fast.models import LanguageModel

VOCABULARY = 400
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
_GEMMA: dict[str, Any] = {**SIZES, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}

CONFIGURATIONS = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "llama, tied": lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "gemma2, softcap and sliding window": lambda: transformers.Gemma2Config(**_GEMMA, final_logit_softcapping=5.0),
    "gemma3, sliding window": lambda: transformers.Gemma3TextConfig(**_GEMMA),
    "granite, logits divided": lambda: transformers.GraniteConfig(**SIZES, logits_scaling=8.0),
    "cohere, logits multiplied": lambda: transformers.CohereConfig(**SIZES, logit_scale=0.25),
    "mistral, sliding window": lambda: transformers.MistralConfig(**SIZES, sliding_window=4),
    "phi, bias in the head": lambda: transformers.PhiConfig(**SIZES),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3
    ),
}


def random_model(configuration: Any, seed: int = 0) -> LanguageModel:
    """A model of this configuration with random weights and biases."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(configuration)
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None:
        torch.nn.init.normal_(bias)
    return LanguageModel(model, tiny_tokenizer(VOCABULARY), "random", "cd" * 32, "ab" * 32)
