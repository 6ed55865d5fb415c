"""Where the base weights are kept that changes are added to: two bytes a parameter on a GPU, or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..errors import InvalidArgumentError
from ..models import LanguageModel

KEEP_BASE = ("device", "host", "file")
Base = Callable[[], Tensor]  # the rows that this process keeps, on its device


def bases(model: LanguageModel, where: str) -> Callable[[nn.Parameter, str], Base]:
    """What keeps the base of a parameter, by its name: a copy on the device or on the host, or the model's own files.

    From the files it is read again at every step. Raises InvalidArgumentError for another place, and where the files
    do not hold the model's weights by their names.
    """
    if where == "device":
        return lambda parameter, _: held(rows_here(parameter).detach().clone())
    if where == "host":
        return lambda parameter, _: _on_host(rows_here(parameter).detach())
    if where != "file":
        raise InvalidArgumentError(f"the base is kept in {where!r}: it must be one of {', '.join(KEEP_BASE)}.")
    files = _files(Path(model.name))
    return lambda parameter, name: _in_file(parameter, name, files, model.name)


def rows_here(tensor: Tensor) -> Tensor:
    """The rows of a sharded tensor that this process keeps, not a copy; of any other tensor all."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def first_row(tensor: Tensor) -> int:
    """The number of the first of `rows_here` in the whole tensor."""
    if not isinstance(tensor, DTensor):
        return 0
    shards, rank = tensor.device_mesh.size(), tensor.device_mesh.get_local_rank()
    each = -(-tensor.shape[0] // shards)  # FSDP2 gives all but the last ones so many
    return min(rank * each, tensor.shape[0])


def held(tensor: Tensor) -> Base:
    """Kept where it is."""
    return lambda: tensor


def _on_host(tensor: Tensor) -> Base:
    kept = tensor.cpu().clone()
    if tensor.is_cuda:
        kept = kept.pin_memory()
    return lambda: kept.to(tensor.device, non_blocking=True)


def _files(folder: Path) -> dict[str, Path]:
    """The file of each tensor, by its name."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            found.update(dict.fromkeys(tensors.keys(), file))
    return found


def _in_file(parameter: nn.Parameter, name: str, files: dict[str, Path], model: str) -> Base:
    if name not in files:
        raise InvalidArgumentError(f"{model} has no weight {name} in its files: keep the base on device or host.")
    rows, device, dtype = rows_here(parameter), parameter.device, parameter.dtype
    first, count = first_row(parameter), len(rows)

    def read() -> Tensor:
        with safe_open(files[name], framework="pt") as tensors:
            found: Tensor = tensors.get_slice(name)[first : first + count]
        return found.to(device, dtype)

    return read
