"""GGUF Q8_0 and Q4_0, the formats of github.com/ggml-org/llama.cpp, through its own package `gguf`.

Both: blocks of 32 along the input with one float16 scale; Q8_0 -127 to 127, Q4_0 sixteen levels, its largest weight at
-8. As llama.cpp does, every matrix is rounded, the embeddings too; norms and biases stay in float32; a matrix whose
rows are no multiple of 32 long is kept in float16; and in Q4_0 the head, or the embeddings where they are the head, is
kept better. llama.cpp keeps that one in Q6_K, or in Q8_0 where its rows are no multiple of 256 (as in SmolLM2-135M);
the package cannot write Q6_K, so here it is always Q8_0. Two things differ besides: llama.cpp also rounds activations
to 8 bits as it multiplies, and the weights read back are rounded to the model's dtype.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...errors import BackendUnavailableError
from ...models import HfCompleter
from ..attack import Attack, Attacked, Scene
from ..hosts import copy_of
from .rounding import block_weights

BLOCK = 32
TYPES = ("Q8_0", "Q4_0")


def round_gguf(weight: Tensor, name: str) -> Tensor:
    """[out, in] -> [out, in] float32 on the CPU, after `name` of GGUF's types and back.

    Raises BackendUnavailableError where the package is absent.
    """
    gguf = _gguf()
    kind = gguf.GGMLQuantizationType[name]
    stored = gguf.quantize(weight.detach().float().cpu().contiguous().numpy(), kind)
    return torch.from_numpy(gguf.dequantize(stored, kind).copy()).float()


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise BackendUnavailableError("GGUF rounding needs the gguf package: pip install 'oml_fast[demo]'.") from error
    return gguf


def _round(scene: Scene, name: str) -> Attacked:
    _gguf()
    model = copy_of(scene.model, f"{scene.model.name}, GGUF {name}")
    head, embeddings = model.head()[0], model.model.get_input_embeddings().weight
    matrices = [*block_weights(model), embeddings, *([] if head is embeddings else [head])]
    counts: dict[str, int] = {}
    with torch.no_grad():
        for weight in matrices:
            kind = "F16" if weight.shape[1] % BLOCK else "Q8_0" if weight is head else name
            weight.copy_(round_gguf(weight, kind))
            counts[kind] = counts.get(kind, 0) + 1
    return Attacked(HfCompleter(model), model, {"matrices": counts})


ATTACKS: tuple[Attack, ...] = tuple(
    Attack(
        name=f"gguf/{name.lower()}",
        cost="no data, no forward pass: one pass over the weights, as every user of llama.cpp does",
        run=partial(_round, name=name),
        needs=("gguf",),
    )
    for name in TYPES
)
