"""How much memory and time an embedding will take, and which settings fit a machine: before anything is loaded."""

from __future__ import annotations

from .machines import HERE, KINDS, Machine, machine, this_machine
from .memory import Memory, MemoryNeed, memory_need
from .planning import Option, Plan, plan

__all__ = [
    "HERE",
    "KINDS",
    "Machine",
    "Memory",
    "MemoryNeed",
    "Option",
    "Plan",
    "machine",
    "memory_need",
    "plan",
    "this_machine",
]
