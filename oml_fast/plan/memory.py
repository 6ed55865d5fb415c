"""Where the memory of one process goes while it embeds."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..embed.recipe import Recipe
from ..embed.workload import Workload
from ..errors import InvalidArgumentError
from ..models import weights_dtype
from .dry_run import Cost, dry_run
from .machines import Machine

# What ops keep beside the tensors that they give, on a CPU and on a GPU: tiles of logits and of their gradients.
CPU_TILES, GPU_TILES = 2**24, 2**27


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one process on its device at the moment when it holds most, by what they are.

    weights, base, gradients, states: its rows of them; states are changes and moments. whitening: the matrices.
    answers: what the base model says, its head and hidden states. activations: of a forward and backward pass, with
    what else lives for a while. gathered: of a sharded model, weights and gradients that are whole for a while.
    """

    weights: int
    base: int
    gradients: int
    states: int
    whitening: int
    answers: int
    activations: int
    gathered: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def to_json(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"total": self.total}


def memory(
    cost: Cost,
    config: Any,
    work: Workload,
    processes: int = 1,
    *,
    keep_base: str = "device",
    offload: bool = False,
    on_cpu: bool = False,
) -> Memory:
    """Of one of `processes` that share the model's weights by rows, as FSDP2 does (models/sharded.py)."""
    tiles = CPU_TILES if on_cpu else GPU_TILES
    share = 0 if offload else 1 / processes
    kept_base = cost.base if keep_base == "device" else 0.0
    living = {
        "weights": cost.weights * share,
        "base": kept_base * share,
        "gradients": cost.gradients * share,
        "states": cost.states * share,
        "whitening": cost.whitening,
        "answers": _answers(config, work, keep_base == "device"),
    }
    layers = config.get_text_config().num_hidden_layers
    rest = cost.weights - cost.block_weights * layers, cost.gradients - cost.block_gradients * layers
    exact = 4 / weights_dtype(config).itemsize
    training = max(_passing(cost, rest, exact, processes, tiles), (cost.update / processes + tiles, 0.0), key=sum)
    measuring = max(0.0, cost.measuring + _gathered(cost, rest[0], processes) - cost.whitening)
    # The whitening is measured before there are changes, gradients and moments.
    without = sum(living[name] for name in ("gradients", "states", "base"))
    if cost.measuring and measuring > sum(training) + without:
        living |= {"gradients": 0.0, "states": 0.0, "base": 0.0}
        training = measuring, 0.0
    activations, gathered = training
    whole = {name: round(size) for name, size in living.items()}
    return Memory(**whole, activations=round(activations), gathered=round(gathered))


def _answers(config: Any, work: Workload, with_states: bool) -> float:
    text = config.get_text_config()
    rows = text.vocab_size + (work.states if with_states else 0)
    return float(rows * text.hidden_size * weights_dtype(config).itemsize)


def _gathered(cost: Cost, rest: float, processes: int) -> float:
    """What computes and what comes next: two blocks, and all that is outside of blocks."""
    return 0.0 if processes == 1 else rest + 2 * cost.block_weights


def _passing(cost: Cost, rest: tuple[float, float], exact: float, processes: int, tiles: int) -> tuple[float, float]:
    """Activations and gathered weights, where their sum is largest.

    rest: weights and gradients outside of blocks. exact: what a gradient's size in float32 is to that in its own dtype.
    """
    activations = cost.activations + tiles
    if processes == 1:
        return activations, 0.0
    gathered = _gathered(cost, rest[0], processes)
    # A block's gradients, and their sum over the processes in float32: as the last block's activations have gone.
    reducing = cost.block_gradients * (1 + exact)
    return max(
        (activations, gathered),
        (activations - cost.block_activations, gathered + reducing),
        (float(tiles), rest[1] * (1 + exact)),  # those outside of blocks come last
        key=sum,
    )


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What an embedding takes of a machine: `memory` of each of its processes. There are `available` bytes for it, of
    which tensors can take about `usable`."""

    memory: Memory
    usable: int
    available: int

    def __str__(self) -> str:
        parts = [f"{gib(size)} {name}" for name, size in self.memory.to_json().items() if size and name != "total"]
        there = f"{gib(self.available)} are there, {gib(self.usable)} of them for tensors"
        return f"embedding needs about {gib(self.memory.total)} ({', '.join(parts)}); {there}"

    def require_fit(self) -> None:
        """InvalidArgumentError where it cannot fit; what might not is let through."""
        if self.memory.total > self.available:
            raise InvalidArgumentError(f"{self}: oml-fast plan finds settings that take less.")


def memory_need(
    config: Any,
    recipe: Recipe,
    work: Workload,
    machine: Machine,
    *,
    keep_base: str = "device",
    recompute: bool = False,
    offload: bool = False,
) -> MemoryNeed:
    """Of embedding so on `machine`, a process a device; nothing is loaded. Raises InvalidArgumentError as `dry_run`."""
    cost = dry_run(config, recipe, work, machine.count, recompute=recompute)
    # On a CPU the host is the device.
    kept = "device" if machine.on_cpu and keep_base == "host" else keep_base
    need = memory(
        cost, config, work, machine.count, keep_base=kept, offload=offload and not machine.on_cpu, on_cpu=machine.on_cpu
    )
    return MemoryNeed(need, machine.usable, machine.memory)


def gib(size: float) -> str:
    """Bytes, to be read."""
    return f"{size / 2**30:.1f} GiB"
