"""The processes that share one embedding, as torchrun starts them. Alone, one process is all there is."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed

from ..errors import OmlError

Item = TypeVar("Item")
_PATIENCE = datetime.timedelta(minutes=30)  # for a process that reads a large model from a slow disk


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's number and how many there are; every method that adds up or waits is called by all of them."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that speaks and writes."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Those of `items` that are this process's: every `world`-th."""
        return list(items[self.rank :: self.world])

    def total(self, *values: float) -> list[float]:
        """Each value summed over all processes, in float64."""
        return self._reduced(values, distributed.ReduceOp.SUM)

    def most(self, value: int) -> int:
        """The largest that any process has."""
        return int(self._reduced([float(value)], distributed.ReduceOp.MAX)[0])

    def from_first(self, value: Any) -> Any:
        """What the first process gives; anything that can be pickled, which stays among these processes."""
        if self.world == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held, src=0)
        return held[0]

    def wait(self) -> None:
        """Until all are here."""
        self.most(0)

    def _reduced(self, values: Sequence[float], operation: Any) -> list[float]:
        if self.world == 1:
            return list(values)
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        held = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.all_reduce(held, operation)
        return list(held.tolist())


ALONE = Ranks()
# What gloo and NCCL say of a process that is gone.
_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


@contextmanager
def told_of_the_dead(way_out: str) -> Iterator[None]:
    """Where another process of torchrun dies inside, OmlError with this way out instead of what its connection says."""
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _GONE):
            raise
        first = str(error).strip().splitlines()[0]
        raise OmlError(
            f"another process of torchrun has ended, its own message says why ({first}). {way_out}"
        ) from error


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """All processes that torchrun started, connected by gloo for "cpu" and by NCCL for "cuda:N".

    Raises OmlError where they cannot be.
    """
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group("nccl" if cuda else "gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise OmlError(f"the processes of torchrun cannot be connected: {error}. Start them with torchrun.") from error
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
