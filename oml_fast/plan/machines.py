"""Machines that an embedding is planned for."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import InvalidArgumentError

HERE = "here"
_GIB = 2**30
# Of the memory of a GPU, and of what a CPU's host has left: libraries, and holes between tensors, take the rest. The
# latter is measured (docs/planning.md), the former assumed.
_GPU_USABLE, _HOST_USABLE = 0.95, 0.7


@dataclass(frozen=True, slots=True)
class Machine:
    """`count` devices of a kind. memory: bytes of each, for one process. device: torch's name of it, where it is here.

    flops: of dense bfloat16 matrix products a second. bandwidth: bytes a second of its memory. link: bytes a second
    between it and the others, one way; host: between it and the host's memory. All as the maker states them.
    """

    kind: str
    count: int
    memory: int
    flops: float
    bandwidth: float
    link: float
    host: float
    device: str = "cuda"

    @property
    def on_cpu(self) -> bool:
        """Whether its memory is the host's."""
        return self.device == "cpu"

    @property
    def usable(self) -> int:
        """Bytes that tensors can take."""
        return round(self.memory * (_HOST_USABLE if self.on_cpu else _GPU_USABLE))

    @property
    def name(self) -> str:
        return self.kind if self.kind == HERE else f"{self.count} x {self.kind}"


# GiB that torch says there are, teraflops, GB a second of memory, link and host: data sheets of the SXM modules, and of
# the boards of the last two, whose devices talk through the host.
_KINDS = {
    "a100-40": (39, 312, 1555, 300, 32),
    "a100-80": (79, 312, 2039, 300, 32),
    "h100": (79, 989, 3350, 450, 64),
    "h200": (139, 989, 4800, 450, 64),
    "b200": (178, 2250, 7700, 900, 64),
    "l40s": (44, 362, 864, 32, 32),
    "rtx4090": (23, 165, 1008, 32, 32),
}
_MACHINES = {
    kind: Machine(kind, 1, size * _GIB, tera * 1e12, giga * 1e9, link * 1e9, host * 1e9)
    for kind, (size, tera, giga, link, host) in _KINDS.items()
}
KINDS = tuple(_MACHINES)


def machine(text: str) -> Machine:
    """ "h100" or "8xh100"; InvalidArgumentError for another kind, naming those there are."""
    found = re.fullmatch(r"(?:([1-9]\d{0,4})x)?([a-z0-9-]+)", text.strip().lower().replace(" ", ""))
    if not found or found[2] not in _MACHINES:
        raise InvalidArgumentError(f"machine {text!r} is unknown: use {HERE}, or N x one of {', '.join(KINDS)}.")
    return replace(_MACHINES[found[2]], count=int(found[1] or 1))


def this_machine(device: str, processes: int = 1) -> Machine:
    """This one, with the memory that can be had now. device: "cpu", which all processes share, or "cuda:N"."""
    on_cpu, unknown = not device.startswith("cuda"), math.nan
    memory = _available(device) // (processes if on_cpu else 1)
    return Machine(HERE, processes, memory, unknown, unknown, unknown, unknown, device)


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
