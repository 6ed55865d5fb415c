"""oml-fast plan: settings for an embedding that fit a machine, with their memory, time and cost in quality."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .common import finish, load_fingerprints, model_folder, prepare
from .generate import PRESETS

if TYPE_CHECKING:
    from ..embed.workload import Keys
    from ..plan import Machine, Option, Plan

HELP = "settings for an embedding that fit a machine; nothing is loaded"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        type=Path,
        metavar="PATH",
        help="model folder, or a config.json alone (default: the bundled SmolLM2-135M-Instruct)",
    )
    parser.add_argument(
        "--machine", default="here", metavar="[Nx]KIND", help="h100, 8xh100, ...; or here (default: here)"
    )
    parser.add_argument("--device", default="auto", help="of --machine here: auto, cpu, cuda or cuda:N (default: auto)")
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument("--fingerprints", type=Path, metavar="PATH", help="fingerprints file, or its folder")
    keys.add_argument(
        "--num-fingerprints", type=int, default=1024, metavar="N", help="of a set that is not made yet (default: 1024)"
    )
    parser.add_argument(
        "--preset", choices=PRESETS, default="harmless", help="of the set and of the recipe (default: harmless)"
    )


def run(options: argparse.Namespace) -> None:
    from ..errors import InvalidArgumentError

    if options.num_fingerprints < 1:
        raise InvalidArgumentError(f"{options.num_fingerprints} fingerprints: at least 1.")
    prepare()
    from ..embed import PRESETS as RECIPES
    from ..models import read_config
    from ..plan import plan

    found = plan(
        read_config(model_folder(options.model)),
        RECIPES[options.preset],
        _keys(options),
        _machine(options),
        preset=options.preset,
    )
    finish(options, found.to_json(), summary(found, options.preset))


def _keys(options: argparse.Namespace) -> Keys:
    from ..embed.workload import Keys
    from ..generate import PRESETS as SETTINGS

    if options.fingerprints is not None:
        return Keys.of_set(load_fingerprints(options.fingerprints))
    return Keys.of_settings(options.num_fingerprints, SETTINGS[options.preset])


def _machine(options: argparse.Namespace) -> Machine:
    from ..models import resolve_device
    from ..plan import HERE, machine, this_machine

    return this_machine(resolve_device(options.device)) if options.machine == HERE else machine(options.machine)


def summary(found: Plan, preset: str) -> str:
    from ..plan.memory import gib

    count, epochs = found.work.keys.count, found.work.epochs
    lines = [
        f"{found.parameters / 1e9:.3g} billion parameters, {count:,} keys, preset {preset}, on {found.machine.name}",
        f"{gib(found.usable)} for tensors on each device; at most {found.work.steps:,} steps in {epochs} epochs",
    ]
    for number, option in enumerate(found.options, 1):
        lines += ["", *_option(number, option, found, preset)]
    if not found.fitting:
        lines += ["", "Nothing fits: use more devices, or a smaller model."]
    return "\n".join(lines)


def _option(number: int, option: Option, found: Plan, preset: str) -> list[str]:
    from ..plan.memory import gib

    parts = [f"{name} {gib(size)}" for name, size in option.memory.to_json().items() if size and name != "total"]
    fits = "" if option.fits else ", DOES NOT FIT"
    return [
        f"{number}. {' '.join([*_started(found), 'oml-fast embed', f'--preset {preset}', *option.arguments()])}",
        f"   memory   {gib(option.memory.total)} a process{fits}: {', '.join(parts)}",
        f"   time     {_time(option)}",
        f"   quality  {_quality(option, found)}",
    ]


def _started(found: Plan) -> list[str]:
    count = found.machine.count
    return [f"torchrun --nproc-per-node {count} --no-python"] if count > 1 else []


def _time(option: Option) -> str:
    if option.seconds is None or option.total is None:
        return "not timed"
    before = f", {_duration(option.seconds.once)} of it for the whitening" if option.seconds.once else ""
    return f"{option.seconds.step:.3g} s a step, {_duration(option.total)} for all steps{before}"


def _quality(option: Option, found: Plan) -> str:
    if option.quality is None:
        return "not measured"
    measured = option.quality
    return f"on the bundled model, 64 keys: FSR {measured['fsr']:.3f}, KL to the base {measured['kl']:.3f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
