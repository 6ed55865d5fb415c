"""Digests that say which model and which tokenizer a fingerprint set belongs to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

_PROBES = (
    "The quick brown fox",
    " leading space",
    "naïve café 東京",
    "x = 10**3\n\tif y:",
    "don't (stop)...",
    "1234567",
)


def model_digest(folder: Path) -> str:
    """SHA-256 (hex) over the weights in `folder`, however they are sharded: name, dtype, shape and bytes of each."""
    return _digest_tensors(item for file in sorted(folder.glob("*.safetensors")) for item in _tensors(file))


def _tensors(file: Path) -> Iterable[tuple[str, Tensor]]:
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
            yield name, tensors.get_tensor(name)


def _digest_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    lines = []
    for name, tensor in tensors:
        content = hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()
        lines.append(f"{name} {tensor.dtype} {list(tensor.shape)} {content}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 (hex) over the vocabulary, the special token ids and how some probe texts are encoded.

    It is about meaning, not about files: a tokenizer saved by another version of transformers keeps its digest. The
    chat template is left out, because prompts are kept as token ids with the template's text frozen in them.
    """
    content = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special": sorted(tokenizer.all_special_ids),
        "probes": [tokenizer(probe)["input_ids"] for probe in _PROBES],
    }
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
