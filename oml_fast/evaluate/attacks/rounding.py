"""Rounding the weights to fewer bits, to the nearest and without data, as is usual before serving.

Each is simulated: the weights are rounded and taken back to the model's dtype, so activations keep their precision and
only what rounding does to the weights is seen. bf16: every parameter. INT8, INT4, FP8: the linear layers of the
blocks; embeddings, head, norms and biases stay, as is usual (LLM.int8 [Dettmers et al. 2022, arXiv 2208.07339], AWQ
[Lin et al. 2024, arXiv 2306.00978]).

INT8: symmetric, a scale for each output channel, -127 to 127.
INT4: asymmetric, a scale and a whole zero point for each group along the input, 0 to 15, as in the round-to-nearest
baseline of AWQ. `rounding/int4` has groups of 32, as GGUF does; `rounding/int4-128` of 128, the usual ones of GPTQ
[Frantar et al. 2022, arXiv 2210.17323] and AWQ, whose steps are wider.
FP8: e4m3, one scale for each tensor, its largest weight at 448 [Micikevicius et al. 2022, arXiv 2209.05433].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import InvalidArgumentError
from ...models import HfCompleter, LanguageModel
from ..attack import Attack, Attacked, Scene
from ..hosts import copy_of

GROUP = 32
_E4M3_MAX = 448.0

# [out, in] float32 -> [out, in] float32.
Change = Callable[[Tensor], Tensor]


def int8(weight: Tensor) -> Tensor:
    """[out, in] float32, rounded to 8 bits by row; off by at most half of the row's largest / 127."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return torch.where(scale > 0, weight / scale, 0.0).round().clamp(-127, 127) * scale


def int4(weight: Tensor, group: int = GROUP) -> Tensor:
    """[out, in] float32, rounded to 4 bits by `group` inputs (a row's last may be fewer); off by at most half a step.

    The range of a group holds zero, so that a zero stays one: the step is (max(w, 0) - min(w, 0)) / 15.
    """
    rows, width = weight.shape
    groups = functional.pad(weight, (0, -width % group)).reshape(rows, -1, group)
    low, high = groups.amin(2, keepdim=True).clamp(max=0), groups.amax(2, keepdim=True).clamp(min=0)
    step = (high - low) / 15
    safe = torch.where(step > 0, step, 1.0)
    zero = -(low / safe).round()
    levels = ((groups / safe).round() + zero).clamp(0, 15)
    return ((levels - zero) * step).view(rows, -1)[:, :width]


def fp8(weight: Tensor) -> Tensor:
    """[out, in] float32, rounded to e4m3 with one scale."""
    scale = weight.abs().amax() / _E4M3_MAX
    if not scale:
        return weight
    return (weight / scale).clamp(-_E4M3_MAX, _E4M3_MAX).to(torch.float8_e4m3fn).float() * scale


def block_weights(model: LanguageModel) -> list[Tensor]:
    """The weights [out, in] of the blocks' linear layers: the model's own tensors, those stored [in, out] as views.

    Raises InvalidArgumentError where the blocks hold other matrices (fused experts): an attack that passed them over
    would look weaker than it is.
    """
    head = model.model.get_output_embeddings()
    weights: list[Tensor] = []
    known: set[int] = set()
    for module in model.model.modules():
        if isinstance(module, nn.Embedding) or module is head:
            known.add(id(module.weight))
        elif isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":  # Conv1D: GPT-2's, stored [in, out]
            known.add(id(module.weight))
            weights.append(module.weight if isinstance(module, nn.Linear) else module.weight.T)
    others = [name for name, value in model.model.named_parameters() if value.ndim > 1 and id(value) not in known]
    if others or not weights:
        raise InvalidArgumentError(
            f"{model.name}: {others[0] if others else 'the model'} is no linear layer that can be rounded or pruned "
            "here. Leave these attacks out, or use another base model."
        )
    return weights


def change_blocks(scene: Scene, change: Change, name: str) -> tuple[LanguageModel, float]:
    """A copy with `change` made to every linear layer of the blocks, and |change| / |weights| over all of them."""
    model = copy_of(scene.model, f"{scene.model.name}, {name}")
    moved = size = 0.0
    with torch.no_grad():
        for weight in block_weights(model):
            before = weight.to(torch.float32, copy=True)
            weight.copy_(change(before))
            moved += float((weight.float() - before).square().sum(dtype=torch.float64))
            size += float(before.square().sum(dtype=torch.float64))
    return model, (moved / max(size, 1e-300)) ** 0.5


def _round_blocks(scene: Scene, change: Change, name: str) -> Attacked:
    model, moved = change_blocks(scene, change, name)
    return Attacked(HfCompleter(model), model, {"relative_change": moved})


def _bf16(scene: Scene) -> Attacked:
    """Does nothing to a model that is in bf16 already; `changed` says so."""
    model = copy_of(scene.model, f"{scene.model.name}, bf16")
    changed = 0
    with torch.no_grad():
        for weight in model.model.parameters():
            rounded = weight.bfloat16().to(weight.dtype)
            changed += int((rounded != weight).sum())
            weight.copy_(rounded)
    return Attacked(HfCompleter(model), model, {"changed_weights": changed})


CHANGES: dict[str, Change] = {
    "int8": int8,
    "int4": int4,
    "int4-128": partial(int4, group=128),
    "fp8": fp8,
}
_COST = "no data, no forward pass: one pass over the weights, which every host may do before serving"

ATTACKS: tuple[Attack, ...] = (
    Attack("rounding/bf16", _COST, _bf16),
    *(
        Attack(f"rounding/{name}", _COST, partial(_round_blocks, change=change, name=name))
        for name, change in CHANGES.items()
    ),
)
