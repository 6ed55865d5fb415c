"""oml-fast evaluate fsr: the owner's full check of a whole set against their own model, before release."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgumentError
from .common import add_device_options, finish, load_fingerprints, names, prepare, say, shard_here, table

if TYPE_CHECKING:
    from ..evaluate.fsr import Grid
    from ..evaluate.fsr_engines import Engine
    from ..evaluate.fsr_parts import FullCheck
    from ..fingerprint import FingerprintSet

HELP = "ask your own model every key, in many prompt templates and at many temperatures"
_ENGINES = ("transformers", "vllm")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="your own fingerprinted model")
    parser.add_argument(
        "--fingerprints", type=Path, required=True, metavar="PATH", help="fingerprints file, or its folder"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder for parts and report; the same command goes on",
    )
    split = parser.add_mutually_exclusive_group()
    split.add_argument("--shard", metavar="I/N", help="only this share, from 1 (default: all, or torchrun's share)")
    split.add_argument("--ray", type=int, metavar="N", help="split over N Ray actors (needs the extra ray)")
    split.add_argument("--merge", action="store_true", help="ask nothing: merge the parts that are in --out")
    parser.add_argument(
        "--templates",
        type=Path,
        metavar="FILE",
        help="your own, beside the built-in: texts with {key}, one a line or JSON",
    )
    parser.add_argument("--temperatures", default="0,0.7,1.0", metavar="LIST", help="default: 0,0.7,1.0")
    parser.add_argument("--samples", type=int, default=4, help="tries at each temperature above 0 (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")
    parser.add_argument("--engine", choices=_ENGINES, default="transformers", help="default: transformers")
    parser.add_argument("--batch-size", type=int, default=64, help="keys a batch, with transformers (default: 64)")
    add_device_options(parser)


def run(options: argparse.Namespace) -> None:
    """Print the report where this run made it, otherwise which shards are still missing."""
    result = make(options)
    if not isinstance(result, dict):
        finish(options, result.to_json(), text(result))
        return
    absent = ", ".join(result["missing"])
    finish(options, result, f"shard {result['shard']} is in {result['part']}; still missing: {absent}")


def make(options: argparse.Namespace) -> FullCheck | dict[str, Any]:
    """Run what is asked for, and merge once no part is missing."""
    from .. import settings

    grid = _grid(options)
    fingerprints = load_fingerprints(options.fingerprints)
    torchrun = settings.shard()
    if options.merge:
        return _merge(options, fingerprints, grid)
    if options.ray is not None:
        if torchrun:
            raise InvalidArgumentError("--ray under torchrun: Ray starts its own processes. Leave one of them out.")
        return _on_ray(options, fingerprints, grid)
    if torchrun and not options.shard and options.engine == "vllm":
        raise InvalidArgumentError(
            "--engine vllm under torchrun: vLLM starts its own processes. Use --ray, or --shard once a GPU."
        )
    return _one_shard(options, fingerprints, grid, torchrun)


def text(result: FullCheck) -> str:
    """A line for each cell, then what fails everywhere."""
    rows = [("template, temperature", "FSR (95 % interval)")]
    for cell in result.cells:
        by_format = ", ".join(f"{name} {fsr:.4f}" for name, fsr in cell.fsr_by_format.items())
        low, high = cell.fsr_interval
        shown = f"{cell.fsr:.4f} ({low:.4f} to {high:.4f}); {by_format}"
        rows.append((f"{cell.template}, {cell.temperature:g}", shown))
    rows += [(f"{name}: not asked", reason) for name, reason in result.identity["skipped"].items()]
    failing = ", ".join(str(number) for number in result.fails_everywhere) or "none"
    rows += [
        ("in all", f"{result.matched} of {result.asked} tries of {result.num_fingerprints} fingerprints matched"),
        ("fail everywhere", failing),
    ]
    return table(rows)


def engine(
    kind: str, folder: Path, device: str, trust_remote_code: bool, batch_size: int, progress: bool = False
) -> Engine:
    """The engine, in this process or in a Ray actor."""
    prepare()
    from ..evaluate.fsr_engines import CompleterEngine, TransformersEngine
    from ..models import load, load_tokenizer, model_digest

    if kind == "vllm":
        from ..serving import VllmCompleter

        completer = VllmCompleter(folder, trust_remote_code=trust_remote_code, progress=progress)
        return CompleterEngine(
            completer, load_tokenizer(folder, trust_remote_code=trust_remote_code), model_digest(folder)
        )
    model = load(folder, device=device, trust_remote_code=trust_remote_code)
    return TransformersEngine(model, batch_size=batch_size, progress=progress)


def _one_shard(
    options: argparse.Namespace, fingerprints: FingerprintSet, grid: Grid, torchrun: tuple[int, int] | None
) -> FullCheck | dict[str, Any]:
    from ..evaluate.fsr import Shard, check, identity
    from ..evaluate.fsr_engines import device_of_rank
    from ..evaluate.fsr_parts import finished, merge, missing, part_path, write_part
    from ..files import require_writable

    shard = Shard(*shard_here(options))
    path = part_path(options.out, shard)
    require_writable(path)
    device = options.device if torchrun is None else device_of_rank(options.device, torchrun[0] - 1)
    made = engine(options.engine, options.model, device, options.trust_remote_code, options.batch_size)
    known = identity(made, fingerprints, grid)
    if finished(options.out, shard, known):
        say(f"shard {shard.index}/{shard.count} was finished before: {path}")
    else:
        write_part(options.out, check(made, fingerprints, grid, shard, progress=True))
    if absent := missing(options.out, shard.count):
        names_of = [f"{index}/{shard.count}" for index in absent]
        return {"shard": f"{shard.index}/{shard.count}", "part": str(path), "missing": names_of}
    return merge(options.out, fingerprints, known)


def _on_ray(options: argparse.Namespace, fingerprints: FingerprintSet, grid: Grid) -> FullCheck:
    from ..evaluate.fsr import Shard
    from ..evaluate.fsr_parts import finished, merge, part_path
    from ..evaluate.fsr_ray import check_on_ray, require
    from ..files import require_writable
    from ..models import require_model_folder

    require()
    shards = [Shard(index, options.ray) for index in range(1, options.ray + 1)]
    require_writable(part_path(options.out, Shard()))
    folder = require_model_folder(options.model).resolve()  # an actor works in another folder
    known = _known(options, fingerprints, grid)
    left = [shard for shard in shards if not finished(options.out, shard, known)]
    make = partial(engine, options.engine, folder, options.device, options.trust_remote_code, options.batch_size)
    if left or not shards:
        check_on_ray(make, fingerprints, grid, left, options.out, actors=options.ray)
    return merge(options.out, fingerprints, known)


def _merge(options: argparse.Namespace, fingerprints: FingerprintSet, grid: Grid) -> FullCheck:
    from ..evaluate.fsr_parts import merge

    return merge(options.out, fingerprints, _known(options, fingerprints, grid))


def _known(options: argparse.Namespace, fingerprints: FingerprintSet, grid: Grid) -> dict[str, Any]:
    """What of the identity can be told without loading the model."""
    from ..models import model_digest, require_model_folder

    known = {"set_digest": fingerprints.digest(), "model_digest": model_digest(require_model_folder(options.model))}
    return known | grid.to_json()


def _grid(options: argparse.Namespace) -> Grid:
    from ..evaluate.fsr import Grid
    from ..evaluate.fsr_templates import BUILT_IN, read_templates

    own = read_templates(options.templates) if options.templates else ()
    try:
        temperatures = tuple(float(value) for value in names(str(options.temperatures).strip("[]")))
    except ValueError as error:
        raise InvalidArgumentError(f"temperatures {options.temperatures!r}: write numbers, as in 0,0.7,1.0.") from error
    return Grid((*BUILT_IN, *own), temperatures, options.samples, options.seed)
