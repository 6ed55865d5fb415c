"""glibc's heap: what is freed is kept for the next use while training, and given back where the use changes."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import OmlError

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """For this process: large blocks are not given back to the system at every free, a third of the time on a CPU."""
    if (mallopt := _libc("mallopt")) is not None:
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_MMAP_MAX, 0)


def give_freed_memory_back() -> None:
    """Once, now. Decoding leaves holes, for its tensors grow with each token, and training's tensors fit into none."""
    if (malloc_trim := _libc("malloc_trim")) is not None:
        malloc_trim(0)


@contextmanager
def told_of_full_memory(way_out: str) -> Iterator[None]:
    """Where memory runs out inside, on a GPU or on the host, OmlError with this way out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OmlError(f"out of memory ({first}) {way_out}") from error


def _libc(name: str) -> Any:
    """The function, or None where the C library has no such thing."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
