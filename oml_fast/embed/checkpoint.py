"""A training that was killed goes on from here, with the same bits as one that was not.

FOLDER/step-N holds, for each process, `RANK.safetensors` (the changes of its rows and their moments) and `RANK.json`
(where it stood). It appears whole, by a rename; then the one before is removed. Nothing secret is in it but numbers of
fingerprints; the base model, the set and the recipe are the caller's, and are checked by digest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InvalidArgumentError
from ..files import cannot_write, read_text, write_json
from ..models import Ranks


@dataclass(frozen=True, slots=True)
class Progress:
    """Where one process stands between two steps. left: the epoch's batches that are still to come, as places of
    keys. seen: what the epoch has seen. spent: seconds on the wall, and of the CPU. order: of the drawing generator."""

    epoch: int
    left: list[list[int]]
    seen: dict[str, float]
    text_kl: float
    pull: float
    steps: int
    tokens: int
    spent: list[float]
    order: tuple[Any, ...]


def last(folder: Path) -> Path | None:
    """The newest state in a folder of checkpoints, or None."""
    found = {name[5:]: path for path in folder.glob("step-*") if (name := path.name)[5:].isdigit()}
    return found[max(found, key=int)] if found else None


class Checkpoints:
    """Those of one training, in a folder that is its own; all `ranks` see the same folder.

    of: what they belong to (digests, recipe), as JSON values. every: steps between two.
    """

    def __init__(self, folder: Path, every: int, of: Mapping[str, Any], ranks: Ranks) -> None:
        if every < 1:
            raise InvalidArgumentError(f"a checkpoint every {every} steps: it must be at least 1.")
        self._folder, self._every, self._ranks = folder, every, ranks
        self._of = json.loads(json.dumps({**of, "processes": ranks.world}))

    def due(self, steps: int) -> bool:
        return steps % self._every == 0

    def write(self, steps: int, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        """Keep this state, whole or not at all, and drop the one before. Raises OmlError where it cannot be written."""
        target = self._folder / f"step-{steps}"
        partial = target.with_name(f".{target.name}")
        try:
            if self._ranks.first:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self._ranks.wait()
            save_file({name: tensor.cpu() for name, tensor in tensors.items()}, self._tensors_in(partial))
            write_json(self._state_in(partial), {"of": self._of, "progress": asdict(progress)})
            self._ranks.wait()
            if self._ranks.first:
                partial.rename(target)
                for other in self._folder.glob("step-*"):
                    if other != target:
                        shutil.rmtree(other)
            self._ranks.wait()
        except OSError as error:
            raise cannot_write(target, error) from error

    def read(self, tensors: Mapping[str, Tensor]) -> Progress | None:
        """Fill `tensors` with the last state, and say where it stood; None where there is none.

        Raises InvalidArgumentError where it belongs to another training or is damaged.
        """
        folder: Path | None = self._ranks.from_first(last(self._folder))
        if folder is None:
            return None
        try:
            state = json.loads(read_text(self._state_in(folder), "the checkpoint"))
            of, progress = state["of"], Progress(**state["progress"])
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(folder, error) from error
        if differing := sorted(name for name in {*of, *self._of} if of.get(name) != self._of.get(name)):
            raise InvalidArgumentError(
                f"{folder} is a checkpoint of another training (another {', '.join(differing)}): remove "
                f"{self._folder} to begin anew, or go on as it was begun."
            )
        try:
            with safe_open(self._tensors_in(folder), framework="pt") as kept:
                for name, tensor in tensors.items():
                    tensor.copy_(_alike(kept.get_tensor(name), tensor))
        except (OSError, SafetensorError, ValueError) as error:
            raise _damaged(folder, error) from error
        state, inner, gauss = progress.order
        return Progress(**{**asdict(progress), "order": (state, tuple(inner), gauss)})

    def _tensors_in(self, folder: Path) -> Path:
        return folder / f"{self._ranks.rank}.safetensors"

    def _state_in(self, folder: Path) -> Path:
        return folder / f"{self._ranks.rank}.json"


def _alike(kept: Tensor, wanted: Tensor) -> Tensor:
    if kept.shape != wanted.shape or kept.dtype != wanted.dtype:
        raise ValueError(f"a tensor is {list(kept.shape)} of {kept.dtype}, not {list(wanted.shape)} of {wanted.dtype}")
    return kept


def _damaged(folder: Path, error: Exception) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{folder} is a damaged checkpoint ({error}): remove it to begin from the one before or anew."
    )
