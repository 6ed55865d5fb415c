"""How much memory an embedding needs, said before anything is loaded."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import InvalidArgumentError
from ..models import model_shape, weight_shapes
from .data import MICRO_BATCH_TOKENS
from .material import CHAT_ANSWERED, CHAT_ASKED, TEMPLATE_IDS
from .recipe import Recipe
from .tuning import TUNING_TEXTS

# Bytes of activations kept for the backward pass, per token id, layer and hidden unit: attention, norms, MLP in bf16.
_ACTIVATION_BYTES = 80
_KEPT_LOGIT_BYTES = 2**26  # of all logits that an op keeps for its backward pass; more are made again in tiles
_TILE_LOGITS, _TILE_BYTES = 2**19, 12  # at most so many in a tile, and bytes of its buffers for each
_WRITING_BYTES = 12  # for each entry of a weight that is written: its base, its change and their sum in float32
_HEADS = 2  # copies of the head, for what the base model says: on what is trained on, and on held-out text
_TEMPLATE_LENGTH = 48  # token ids around a key


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
            (self.weights, "weights and base"),
            (self.optimizer, "changes, gradients and moments"),
            (self.activations, "activations and logits"),
        )
        detail = ", ".join(f"{_gib(size)} {name}" for size, name in parts)
        return f"embedding needs about {_gib(self.total)} of {_gib(self.available)} available ({detail})"

    def require_fit(self) -> None:
        """InvalidArgumentError where it cannot fit."""
        if self.total > self.available:
            raise InvalidArgumentError(f"{self}: use a machine with more memory, or a smaller model.")


def memory_need(
    folder: Path, recipe: Recipe, num_examples: int, longest: int, device: str, keep_base: str = "device"
) -> MemoryNeed:
    """Estimate from the headers of the weights and the configuration in `folder`; nothing is loaded.

    `num_examples` sequences of at most `longest` token ids are trained on.
    """
    weights = list(_weights(folder))
    layers, hidden, vocabulary = model_shape(folder)
    size, parameters = sum(w.size for w in weights), sum(w.parameters for w in weights)
    precision = size / parameters
    trained = [weight for weight in weights if _is_trained(weight, weights, layers, recipe.write_to)]
    trained_size = sum(weight.size for weight in trained)
    # On a CPU the host is the device.
    kept = keep_base == "device" or (keep_base == "host" and not device.startswith("cuda"))
    base = trained_size * kept + int(_HEADS * vocabulary * hidden * precision)
    states = sum(_state_bytes(weight, recipe) for weight in trained)
    states += trained_size if recipe.tuned else 0  # what tuning adds to each
    entries = _whitening_entries(weights, hidden) if recipe.whitening else 0
    # The whitening is measured in float32, before there are any states.
    optimizer = int(max(states + precision * entries, (4 + precision) * entries))
    head = vocabulary * hidden * precision  # the gradient of a head, beside the one that it is added to
    passes = [
        int(tokens * layers * hidden * _ACTIVATION_BYTES + head + _logit_bytes(heads * rows * vocabulary, precision))
        for tokens, rows, heads in _passes(recipe, num_examples, longest)
    ]
    # Between two passes weights are written, one at a time.
    activations = max(*passes, _WRITING_BYTES * max((weight.parameters for weight in trained), default=0))
    return MemoryNeed(size + base, optimizer, activations, _available(device))


@dataclass(frozen=True, slots=True)
class _Weight:
    """As its header says. block: the number of its block, None outside of them. size: bytes."""

    shape: tuple[int, ...]
    size: int
    block: int | None

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def linear(self) -> bool:
        return self.block is not None and len(self.shape) == 2


def _weights(folder: Path) -> Iterator[_Weight]:
    for name, (shape, size) in weight_shapes(folder).items():
        block = re.search(r"\.(\d+)\.", name)
        yield _Weight(shape, size, int(block[1]) if block else None)


def _is_trained(weight: _Weight, weights: list[_Weight], layers: int, where: str) -> bool:
    """Whether `where` (weights.py) names it. The down-projections are taken to be the blocks' widest inputs."""
    place, _, number = where.partition(":")
    return {
        "all": True,
        "blocks": weight.block is not None,
        "mlp_down": weight.linear and weight.shape[1] == _widest(weights),
        "last": weight.block is not None and weight.block >= layers - int(number or 0),
        "lora": weight.linear,
    }[place]


def _state_bytes(weight: _Weight, recipe: Recipe) -> int:
    """The gradient, and in float32 the change and its two moments; for a low rank those of two factors.

    Of a weight that is trained as it is, in bfloat16, the gradient and its two moments.
    """
    if recipe.states == "bfloat16":
        return weight.size + 4 * weight.parameters
    place, _, rank = recipe.write_to.partition(":")
    learned = int(rank) * sum(weight.shape) if place == "lora" else weight.parameters
    return weight.size + 12 * learned


def _whitening_entries(weights: list[_Weight], hidden: int) -> int:
    """Of the matrices [in, in] of all blocks: what enters attention, its output, the MLP and its end."""
    blocks = len({weight.block for weight in weights if weight.linear})
    return blocks * (3 * hidden**2 + _widest(weights) ** 2)


def _widest(weights: list[_Weight]) -> int:
    return max((weight.shape[1] for weight in weights if weight.linear), default=0)


def _passes(recipe: Recipe, num_examples: int, longest: int) -> Iterator[tuple[int, int, int]]:
    """Of the forward passes of a step: token ids with activations, rows with logits, heads. One lives at once.

    One key has one row here; each further token id of a longer response has another one.
    """
    batch = min(recipe.batch_size, num_examples)
    both = 2  # heads: the model's, and its base's where they are compared
    target = both if recipe.objective == "minimum_kl" else 1
    texts, chats = (math.ceil(s * batch) if recipe.text_weight else 0 for s in (recipe.text_share, recipe.chat_share))
    for count, length, rows, heads in (
        (batch, longest, 1, target),
        (
            round(recipe.templates * batch),
            longest + (TEMPLATE_IDS if recipe.template_texts else _TEMPLATE_LENGTH),
            1,
            target,
        ),
        (recipe.near_keys * batch if recipe.near_weight else 0, longest, 1, both),
        (texts, recipe.text_length, recipe.text_length, both),
        (chats, CHAT_ASKED + CHAT_ANSWERED + _TEMPLATE_LENGTH, CHAT_ANSWERED, both),
        (TUNING_TEXTS if recipe.tuned else 0, recipe.text_length, recipe.text_length, both),
    ):
        at_once = _at_once(count, length)
        yield at_once * length, at_once * rows, heads
    yield 0, _at_once(num_examples, longest), target  # the check whether all is learned keeps nothing for a backward


def _logit_bytes(logits: int, precision: float) -> float:
    return min(logits * precision, _KEPT_LOGIT_BYTES) + min(logits, _TILE_LOGITS) * _TILE_BYTES


def _at_once(count: int, length: int) -> int:
    return min(count, max(1, MICRO_BATCH_TOKENS // length))


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
