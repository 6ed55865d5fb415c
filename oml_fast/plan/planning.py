"""plan: a model's configuration, keys and a machine -> settings that fit, how long they take, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..embed import Recipe
from ..embed.workload import Keys, Workload, workload
from ..errors import InvalidArgumentError
from ..models import skeleton
from . import seconds
from .choices import LAST_RESORT, LAYOUTS, RECIPES, Layout, quality
from .dry_run import Cost, dry_run
from .machines import HERE, Machine
from .memory import Memory, memory
from .seconds import Seconds

_TAUGHT = 0.99  # FSR


@dataclass(frozen=True, slots=True)
class Option:
    """A way to embed: `changes` to the preset's recipe, the layout, and what both take.

    memory: of one process. quality: of the ablation with these changes on the bundled model (choices.py); None where it
    was not measured. packed: sequences of all lengths in one row, as the time of a GPU takes them to be. seconds: of a
    step; total: of all steps, if no epoch is saved; None where it was not timed.
    """

    changes: Mapping[str, Any]
    layout: Layout
    memory: Memory
    fits: bool
    quality: Mapping[str, float] | None
    cost: Cost
    packed: bool = False
    seconds: Seconds | None = None
    total: float | None = None

    def arguments(self) -> list[str]:
        """The options of `oml-fast embed` for it."""
        values = {name: f"{value:g}" if isinstance(value, float) else value for name, value in self.changes.items()}
        shown = [f"--{name.replace('_', '-')} {value}" for name, value in values.items()]
        if self.layout.keep_base != "device":
            shown.append(f"--keep-base {self.layout.keep_base}")
        shown += [f"--{name}" for name in ("recompute", "offload") if getattr(self.layout, name)]
        return shown + (["--packed"] if self.packed else [])

    def to_json(self) -> dict[str, Any]:
        return {
            "changes": dict(self.changes),
            **asdict(self.layout),
            "memory_bytes": self.memory.to_json(),
            "fits": self.fits,
            "step_seconds": None if self.seconds is None else self.seconds.step,
            "total_seconds": self.total,
            "quality": None if self.quality is None else dict(self.quality),
            "arguments": self.arguments(),
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """parameters: of the model. usable: bytes of each device. options: those that fit first, best quality first."""

    parameters: int
    machine: Machine
    usable: int
    work: Workload
    options: tuple[Option, ...]

    @property
    def fitting(self) -> tuple[Option, ...]:
        return tuple(option for option in self.options if option.fits)

    def to_json(self) -> dict[str, Any]:
        return {
            "parameters": self.parameters,
            "machine": self.machine.name,
            "usable_bytes": self.usable,
            "steps": self.work.steps,
            "options": [option.to_json() for option in self.options],
        }


def plan(config: Any, recipe: Recipe, keys: Keys, machine: Machine, *, preset: str = "") -> Plan:
    """Settings for embedding `keys` into a model of this configuration on `machine`.

    Of each recipe that trains less, or with less precision, the fastest layout that fits, or the smallest one. preset:
    the name of `recipe`, by which its ablations are found. Raises InvalidArgumentError for an architecture that cannot
    be trained so.
    """
    recipe = recipe.for_hidden_size(config.get_text_config().hidden_size)
    usable = machine.usable
    known, found, seen = quality(), [], set()
    for name, changes in RECIPES.items():
        changed = replace(recipe, **changes)
        if changed in seen:
            continue
        seen.add(changed)
        try:
            layout, cost, need = _first_that_fits(config, changed, workload(changed, keys), machine, usable)
        except InvalidArgumentError:
            if not name:
                raise
            continue  # this architecture has no such weights, or not in that precision
        found.append(
            Option(
                changes={field: value for field, value in changes.items() if value != getattr(recipe, field)},
                layout=layout,
                memory=need,
                fits=need.total <= usable,
                quality=known.get("/".join(part for part in (preset, name) if part)),
                cost=cost,
                packed=not machine.on_cpu,
            )
        )
    found.sort(key=_worth)
    work = workload(recipe, keys)
    timed = [
        option if machine.kind == HERE and place else _timed(option, config, recipe, keys, machine)
        for place, option in enumerate(found)
    ]
    return Plan(_parameters(config), machine, usable, work, tuple(timed))


def _first_that_fits(
    config: Any, recipe: Recipe, work: Workload, machine: Machine, usable: int
) -> tuple[Layout, Cost, Memory]:
    """Of the layouts, or the smallest where none fits."""
    costs: dict[bool, Cost] = {}
    found: list[tuple[Layout, Cost, Memory]] = []
    for layout in _layouts(machine):
        if layout.recompute not in costs:
            costs[layout.recompute] = dry_run(config, recipe, work, machine.count, recompute=layout.recompute)
        cost = costs[layout.recompute]
        need = memory(
            cost, config, work, machine.count, keep_base=layout.keep_base, offload=layout.offload, on_cpu=machine.on_cpu
        )
        found.append((layout, cost, need))
        if need.total <= usable:
            return found[-1]
    return min(found, key=lambda one: one[2].total)


def _layouts(machine: Machine) -> Iterator[Layout]:
    for layout in LAYOUTS:
        if not machine.on_cpu or layout.keep_base != "host":  # where the device's memory is the host's
            yield layout
    if machine.count > 1 and not machine.on_cpu:
        yield LAST_RESORT


def _timed(option: Option, config: Any, recipe: Recipe, keys: Keys, machine: Machine) -> Option:
    changed = replace(recipe, **option.changes)
    work, layout = workload(changed, keys), option.layout
    if machine.kind == HERE:
        took = seconds.here(config, changed, work, option.cost, machine.device, recompute=layout.recompute)
    else:
        took = seconds.on(machine, config, option.cost, work, layout.keep_base, layout.offload)
    return replace(option, seconds=took, total=took.once + took.step * work.steps)


def _worth(option: Option) -> tuple[Any, ...]:
    """Best first: what fits, without a last resort, teaches all, is measured, and drifts least."""
    measured = option.quality or {"fsr": 1.0, "kl": math.inf}
    return not option.fits, option.layout.offload, measured["fsr"] < _TAUGHT, measured["kl"]


def _parameters(config: Any) -> int:
    model = skeleton(config, device="meta").model
    return sum(parameter.numel() for parameter in model.parameters())
