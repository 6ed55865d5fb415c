"""How much memory an embedding needs, said before anything is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import InvalidArgumentError
from ..models import count_parameters, model_shape
from .data import MICRO_BATCH_TOKENS
from .recipe import Recipe

# Bytes of activations kept for the backward pass, per token id, layer and hidden unit: attention, norms, MLP in bf16.
_ACTIVATION_BYTES = 80


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes by part, and how many there are on the device."""

    weights: int
    optimizer: int
    activations: int
    available: int

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.activations

    def __str__(self) -> str:
        parts = (
            (self.weights, "weights, base and gradients"),
            (self.optimizer, "masters and moments"),
            (self.activations, "activations and logits"),
        )
        detail = ", ".join(f"{_gib(size)} {name}" for size, name in parts)
        return f"embedding needs about {_gib(self.total)} of {_gib(self.available)} available ({detail})"

    def require_fit(self) -> None:
        """InvalidArgumentError where it cannot fit."""
        if self.total > self.available:
            raise InvalidArgumentError(f"{self}: use a machine with more memory, or a smaller model.")


def memory_need(folder: Path, recipe: Recipe, num_examples: int, longest: int, device: str) -> MemoryNeed:
    """Estimate from the headers of the weights and the configuration in `folder`; nothing is loaded.

    `num_examples` sequences of at most `longest` token ids are trained on.
    """
    parameters, size = count_parameters(folder)
    layers, hidden, vocabulary = model_shape(folder)
    below_float32 = size < 4 * parameters
    # Weights, the base's copy and gradients in the weights' precision; float32 gradients and masters beside lower ones.
    weights = 3 * size if recipe.pull else 2 * size
    optimizer = parameters * (8 + (8 if below_float32 else 0))
    tokens = min(MICRO_BATCH_TOKENS, num_examples * longest)
    rows = max(recipe.text_length * min(recipe.batch_size, num_examples) * recipe.text_share, min(num_examples, tokens))
    activations = int(tokens * layers * hidden * _ACTIVATION_BYTES + rows * vocabulary * 4 * 5)
    return MemoryNeed(weights, optimizer, activations, _available(device))


def _available(device: str) -> int:
    """Free bytes on a GPU; on a CPU what the kernel says can be had, within the control group's limit."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        available = min(available, int(text))
    return available


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
