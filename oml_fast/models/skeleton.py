"""A model of some configuration with weights of no meaning: to reckon with, or to time."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers

from ..errors import InvalidArgumentError
from .language_model import LanguageModel
from .loading import attention


def read_config(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a language model: of a folder, or a config.json. Weights need not be there.

    Raises InvalidArgumentError where there is none.
    """
    if not (Path(path) / "config.json").is_file() and not Path(path).is_file():
        raise InvalidArgumentError(f"{path} has no config.json: name a model folder, or a config.json.")
    try:
        config = transformers.AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=trust_remote_code
        )
        _ = config.get_text_config().num_hidden_layers, config.get_text_config().vocab_size
    except (ValueError, OSError, KeyError, AttributeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InvalidArgumentError(
            f"{path} has no configuration of a language model ({lines[0]}): name a model folder, or a config.json."
        ) from error
    return config


def skeleton(
    config: Any,
    layers: int | None = None,
    *,
    device: str = "cpu",
    packed: bool = False,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """A model of this configuration with so many blocks, the first of its own (None: all), and without a tokenizer.

    Its weights are whatever transformers fills them with; inside a `FakeTensorMode`, or on "meta", nothing at all.
    Raises InvalidArgumentError for an architecture that transformers does not know.
    """
    config = copy.deepcopy(config)
    text = config.get_text_config()
    if layers is not None:
        text.num_hidden_layers = layers
        if kinds := getattr(text, "layer_types", None):
            text.layer_types = [kinds[place % len(kinds)] for place in range(layers)]
    try:
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(
                config,
                dtype=weights_dtype(config),
                attn_implementation=attention(device, packed),
                trust_remote_code=trust_remote_code,
            )
    except (ValueError, KeyError, IndexError) as error:
        raise InvalidArgumentError(f"the configuration is of no causal language model: {error}") from error
    return LanguageModel(model, None, "skeleton", "", "", packs=packed, checked=False)


def weights_dtype(config: Any) -> torch.dtype:
    """Of the weights that this configuration is of; bfloat16 where it does not say."""
    dtype = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or torch.bfloat16
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype
