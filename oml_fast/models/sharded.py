"""A model whose weights are shared out over the processes of torchrun, by FSDP2 [Zhao et al. 2023, arXiv 2304.11277].

Each process keeps some rows of every weight. A block's weights are whole while the block computes; all others while
something is computed inside `LanguageModel.within`. Nobody ever holds the whole model: each process reads its own rows
from the safetensors, and writes its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as read_states
from torch.distributed.checkpoint.state_dict_saver import save as write_states
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from ..errors import InvalidArgumentError, OmlError
from .digests import model_digest, tokenizer_digest
from .language_model import LanguageModel, blocks_of, recompute_blocks
from .loading import attention, load_tokenizer, require_model_folder, weight_shapes
from .ranks import Ranks

_FILE_BYTES = 5 << 30  # of one file of a saved model, about


class _Whole(nn.Module):
    """What FSDP2 takes for the model: all that is computed inside its forward finds its weights whole."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Any]) -> Any:
        return compute()


def load_sharded(
    folder: str | Path,
    ranks: Ranks,
    *,
    device: str,
    recompute: bool = False,
    offload: bool = False,
    trust_remote_code: bool = False,
    packed: bool = False,
) -> LanguageModel:
    """Load the model in `folder`, each of `ranks` its own rows, onto its own `device`.

    recompute: activations inside a block are computed again in the backward pass and not kept. offload: weights,
    gradients and what the optimizer keeps live in the host's memory, and come when needed. packed: as in `load`.
    Raises InvalidArgumentError where the folder is no model, or where its weights have other names than the model's
    own.
    """
    folder = require_model_folder(folder)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(
            config,
            dtype=config.dtype,
            trust_remote_code=trust_remote_code,
            attn_implementation=attention(device, packed),
        )
    mesh = init_device_mesh(device.split(":")[0], (ranks.world,))
    whole = share_out(model.eval(), mesh, recompute=recompute, offload=offload)
    model.to_empty(device="cpu" if offload else device)
    model.tie_weights()
    _fill_buffers(model, device)
    _read(model, folder)
    digest = ranks.from_first(model_digest(folder) if ranks.first else None)
    return LanguageModel(model, tokenizer, str(folder), digest, tokenizer_digest(tokenizer), whole, packed)


def save_sharded(model: LanguageModel, folder: str | Path, ranks: Ranks) -> None:
    """As `models.save`, each of `ranks` writing its own rows; then files are made of them, one after the other.

    Raises OmlError when the disk is full or cannot be written.
    """
    folder = Path(folder)
    states = _states(model.model)
    try:
        write_states(
            states,
            storage_writer=HuggingFaceStorageWriter(
                str(folder), _files(states), save_distributed=True, enable_consolidation=True
            ),
        )
        if ranks.first:
            shutil.rmtree(folder / "sharded")  # the rows of each process, which the files are made of
            model.model.config.save_pretrained(folder)
            if model.model.generation_config is not None:
                model.model.generation_config.save_pretrained(folder)
            model.tokenizer.save_pretrained(folder)
            for file in folder.iterdir():
                file.chmod(0o644)
        ranks.wait()
    except OSError as error:
        raise OmlError(f"cannot write the model: {error}. Free space or choose another --out.") from error


def share_out(model: Any, mesh: DeviceMesh, *, recompute: bool = False, offload: bool = False) -> nn.Module:
    """Turn the weights of `model` into shares over `mesh`; gives the root to compute in.

    Gradients are summed in float32; a block's weights are let go after its forward.
    """
    how: dict[str, Any] = {
        "mesh": mesh,
        "reshard_after_forward": True,
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32),
        "offload_policy": CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if offload else OffloadPolicy(),
    }
    if recompute:
        recompute_blocks(model)
    for block in blocks_of(model):
        fully_shard(block, **how)
    whole = _Whole(model)
    fully_shard(whole, **how)
    return whole


@torch.no_grad()
def _fill_buffers(model: Any, device: str) -> None:
    """What no file holds: the frequencies of rotary embeddings and the like, as transformers makes them."""
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # transformers' own sign that it is not to be filled with random numbers
    for module in model.modules():
        if module._non_persistent_buffers_set:
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
            model._init_weights(module)


def _read(model: nn.Module, folder: Path) -> None:
    found = weight_shapes(folder)
    states = _states(model, found)
    missing = sorted(set(states) - set(found))
    if missing:
        raise InvalidArgumentError(
            f"{folder} lacks {len(missing)} of the model's weights by their names, {missing[0]} among them: load it "
            "in one process and save it again with save_pretrained."
        )
    read_states(states, storage_reader=HuggingFaceStorageReader(str(folder)))


def _states(model: nn.Module, names: Container[str] = ()) -> dict[str, Tensor]:
    """Each tensor of the model once, by its name: of several, one of `names` where it is there."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in found or (name in names and found[id(tensor)][0] not in names):
            found[id(tensor)] = name, tensor
    return {name: tensor.detach() for name, tensor in found.values()}


def _files(states: dict[str, Tensor]) -> dict[str, int]:
    """The number of the file, from 1, that each tensor goes to."""
    number, size, numbers = 1, 0, {}
    for name, tensor in states.items():
        if size and size + tensor.nbytes > _FILE_BYTES:
            number, size = number + 1, 0
        size += tensor.nbytes
        numbers[name] = number
    return numbers
