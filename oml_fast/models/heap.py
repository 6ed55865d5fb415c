"""glibc's heap: what is freed is kept for the next use while training, and given back where the use changes."""

from __future__ import annotations

import ctypes
from typing import Any

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


def _libc(name: str) -> Any:
    """The function, or None where the C library has no such thing."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
