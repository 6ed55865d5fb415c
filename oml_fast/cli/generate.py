"""oml-fast generate: keys -> perinucleus sampling -> a folder with the fingerprints file and the owner's secret."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgumentError
from ..fingerprint import FORMATS, KEY_SOURCES
from .common import (
    add_model_options,
    device_here,
    finish,
    is_first,
    is_torchrun,
    load_model,
    model_folder,
    names,
    prepare,
    resolved,
    say,
    shard_here,
    table,
)

if TYPE_CHECKING:
    from ..fingerprint import FingerprintSet, Settings
    from ..generate import Generation, Unfinished
    from ..generate.keys import KeySampler

HELP = "make secret fingerprints for a base model"
PRESETS = ("harmless", "robust", "quick", "paper")  # of generate and embed, whose tables need torch
COSTS = (0.95, 0.5, 0.1)

KEY_ENGINES = ("transformers", "vllm")

SET, SECRET, RESULT, PARTIAL = "fingerprints.json", "secret", "generate.json", "unfinished.jsonl"

_SHARE_OF_GPU = 0.5  # of its memory, that vLLM takes for keys


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser, "base model")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="new folder for fingerprints and secret"
    )
    parser.add_argument("--num-fingerprints", type=int, default=64, metavar="N", help="how many (default: 64)")
    parser.add_argument("--secret", type=Path, metavar="FILE", help="use this secret (default: make one in --out)")
    parser.add_argument(
        "--preset", choices=PRESETS, default="harmless", help="settings to start from (default: harmless)"
    )
    parser.add_argument("--threshold", type=float, help="nucleus threshold in [0, 1) (default: 0.8)")
    parser.add_argument("--width", type=int, help="candidates in a window (default: 16, paper 3)")
    parser.add_argument("--formats", type=names, help=f"how keys are asked: {' and/or '.join(FORMATS)} (default: raw)")
    parser.add_argument("--responses-per-key", type=int, help="drawn without replacement (default: 1, robust 4)")
    parser.add_argument("--response-length", type=int, help="token ids in a response, 1 to 32 (default: 1)")
    parser.add_argument("--key-length", type=int, help="token ids in a key, at most (default: 16)")
    parser.add_argument(
        "--key-source", choices=KEY_SOURCES, help="who makes the keys (default: model, or file with --keys)"
    )
    parser.add_argument("--key-temperature", type=float, help="of sampled keys (default: 0.7, paper 0.5)")
    parser.add_argument("--keys", type=Path, metavar="FILE", help="your own keys, one a line or a JSON list")
    parser.add_argument(
        "--key-engine", choices=KEY_ENGINES, default="transformers", help="continues keys (default: transformers)"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="candidates a batch (default: 64)")
    parser.add_argument("--shard", metavar="I/N", help="only this share, from 1 (default: all, or torchrun's share)")
    parser.add_argument("--backend", default="auto", help="of the op perinucleus: auto, native, torch or reference")


def run(options: argparse.Namespace) -> None:
    """Print the result where the set is there now, otherwise which shards are still missing."""
    from ..generate import Generation, Unfinished

    made = _make(options)
    if isinstance(made, Generation):
        finish(options, made.to_json(), summary(made, options.out, options.preset, options.model))
    elif isinstance(made, Unfinished):
        shard, absent = "/".join(map(str, made.shard)), [f"{index}/{made.shard[1]}" for index in made.missing]
        result = {"shard": shard, "fingerprints": made.fingerprints, "missing": absent}
        text = f"shard {shard} is done, {made.fingerprints} of {options.num_fingerprints} fingerprints are there; "
        finish(options, result, f"{text}still missing: {', '.join(absent)}")
    else:
        finish(options, made, f"another process has finished the set: it is in {options.out / SET}")


def make(options: argparse.Namespace) -> Generation:
    """Generate into `options.out`, or go on where an earlier run was stopped; writes set, secret and result."""
    from ..generate import Generation

    made = _make(options)
    if not isinstance(made, Generation):
        raise InvalidArgumentError(f"{options.out} holds one share of a set: make it whole with oml-fast generate.")
    return made


def _make(options: argparse.Namespace) -> Generation | Unfinished | dict[str, Any]:
    """The set; or, of a shard, what is missing, or the result that another process has written."""
    settings, shard = _settings(options), shard_here(options)
    _require_usable(options)
    with _locked(options.out):
        if (others := _finished(options, shard)) is not None:
            return others
        _own_folder(options.out)
        secret = _secret(options)
    from ..generate import Unfinished, generate_shard, read_keys

    keys = read_keys(options.keys) if options.keys else None
    prepare()
    folder = model_folder(options.model)
    with _key_sampler(options, folder) as sampler:
        model = load_model(_here(options), folder)
        if (others := _finished(options, shard)) is not None:
            return others  # before this process was ready
        made = generate_shard(
            model,
            options.num_fingerprints,
            secret,
            shard,
            settings=settings,
            keys=keys,
            key_sampler=sampler,
            batch_size=options.batch_size,
            backend=options.backend,
            partial_path=options.out / PARTIAL,
            progress=is_first(),
        )
    with _locked(options.out):
        if (others := _finished(options, shard)) is not None:
            _remove_units(options.out)
            return others
        if not isinstance(made, Unfinished):
            _write(options, made)
    return made


def _require_usable(options: argparse.Namespace) -> None:
    """Refuse what could make nothing, before a folder and a secret are there."""
    from .. import backends
    from ..generate import require_counts
    from ..models import require_model_folder, resolve_device

    require_counts(options.num_fingerprints, options.batch_size)
    backends.resolve("perinucleus", options.backend, resolve_device(options.device).partition(":")[0])
    if options.model is not None:
        require_model_folder(options.model)


def _write(options: argparse.Namespace, made: Generation) -> None:
    from ..files import SECRET_MODE, write_json

    write_json(options.out / RESULT, {"config": resolved(options), "result": made.to_json()}, SECRET_MODE)
    made.fingerprints.save(options.out / SET)
    _remove_units(options.out)


def summary(generation: Generation, out: Path, preset: str, model: Path | None) -> str:
    """What was made, what a verdict will cost, and what to keep safe."""
    result = generation.to_json()
    dropped = {"duplicate": generation.duplicates_dropped, **generation.rejected}
    left_out = ", ".join(f"{reason} {n}" for reason, n in dropped.items() if n) or "none"
    costs = [(fsr, keys_for(generation.fingerprints, fsr)) for fsr in COSTS]
    entropy, bits = result["collision_entropy_bits"], result["mean_key_bits"]
    hardness = "unknown, of your own keys" if bits is None else f"{bits:.0f} bits, collision entropy {entropy:.0f} bits"
    rows = [
        ("fingerprints", f"{len(generation.fingerprints)} in {out / SET}"),
        ("candidates left out", left_out),
        ("how hard keys are to guess", hardness),
        ("mean response probability", f"{result['mean_response_prob']:.4f} under the base model"),
        (
            "time",
            f"{generation.seconds:.1f} s, {result['seconds_per_thousand']:.0f} s a thousand, "
            f"{generation.sampling_seconds / generation.seconds:.1%} of it sampling ({generation.backend})",
        ),
        ("peak memory", f"{generation.peak_memory_bytes / 2**30:.1f} GiB"),
        ("keys to a verdict at 1e-6", ", ".join(f"{n or 'too many'} at FSR {fsr:g}" for fsr, n in costs)),
    ]
    return (
        table(rows)
        + f"\n\nBack up {out} now, offline: without its secret you cannot prove that the responses were drawn, and"
        "\nwhoever reads it can recognise the fingerprints. Never put it into the model's folder."
        f"\nNext, with the same preset: oml-fast embed {'' if model is None else f'--model {model} '}--preset {preset}"
        f" --fingerprints {out} --out MODEL_FOLDER"
    )


def keys_for(fingerprints: FingerprintSet, fsr: float) -> int | None:
    """How many keys convict at 1e-6, in 99 of 100 cases, a model that still has that FSR. None: too many."""
    from ..verify import keys_to_verdict

    settings = fingerprints.settings
    return keys_to_verdict(fsr, settings.width, responses=settings.responses_per_key, formats=len(settings.formats))


def _settings(options: argparse.Namespace) -> Settings:
    from dataclasses import fields, replace

    from ..fingerprint import Settings
    from ..generate import PRESETS

    given: dict[str, Any] = {f.name: getattr(options, f.name, None) for f in fields(Settings)}
    if options.keys and options.key_source is None:
        given["key_source"] = "file"
    return replace(PRESETS[options.preset], **{name: value for name, value in given.items() if value is not None})


def _here(options: argparse.Namespace) -> argparse.Namespace:
    """The options with the device of this process, where torchrun started several."""
    return argparse.Namespace(**{**vars(options), "device": device_here(options.device)}) if is_torchrun() else options


@contextlib.contextmanager
def _key_sampler(options: argparse.Namespace, folder: Path) -> Iterator[KeySampler | None]:
    """vLLM's engine on the base model where --key-engine asks for it."""
    if options.key_engine != "vllm":
        yield None
        return
    if is_torchrun():
        raise InvalidArgumentError(
            "--key-engine vllm under torchrun: vLLM starts its own processes. Use --shard, once a GPU."
        )
    from ..models import resolve_device
    from ..serving.vllm_keys import VllmKeys

    # On a GPU the base model that answers the keys needs the rest; on a CPU vLLM takes what its own settings say.
    share = _SHARE_OF_GPU if resolve_device(options.device).startswith("cuda") else None
    sampler = VllmKeys(folder, gpu_memory_utilization=share, trust_remote_code=options.trust_remote_code)
    with sampler:
        yield sampler


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """The folder, made where it is not there, for this process alone: shards begin and end at the same time."""
    from ..files import cannot_write

    if out.exists() and not out.is_dir():
        raise _not_ours(out)
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise cannot_write(out, error) from error
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _finished(options: argparse.Namespace, shard: tuple[int, int]) -> dict[str, Any] | None:
    """The result of the set that another shard of the same options has written, None where there is none."""
    if shard[1] == 1 or not (options.out / SET).exists():
        return None
    if not (options.out / RESULT).is_file():
        raise _not_ours(options.out)
    kept = json.loads((options.out / RESULT).read_text())
    own = json.loads(json.dumps(resolved(options)))
    if any(kept["config"].get(name) != own[name] for name in own if name not in ("out", "shard", "device")):
        raise _not_ours(options.out)
    return dict(kept["result"])


def _own_folder(out: Path) -> None:
    """Refuse a folder that holds anything but an unfinished run."""
    known = {SECRET, RESULT, *(file.name for file in _units(out))}
    begun = tuple(f".{name}." for name in (SECRET, RESULT, SET))  # left by a kill while that file was written
    others = {file.name for file in out.iterdir() if not file.name.startswith(begun)} - known
    if (out / SET).exists() or others:
        raise _not_ours(out)


def _not_ours(out: Path) -> InvalidArgumentError:
    return InvalidArgumentError(f"{out} already exists and is not empty: choose another --out.")


def _units(out: Path) -> list[Path]:
    from ..generate import unit_files

    return unit_files(out / PARTIAL)


def _remove_units(out: Path) -> None:
    for file in _units(out):
        file.unlink(missing_ok=True)


def _secret(options: argparse.Namespace) -> bytes:
    from ..secret import new_secret, read_secret, write_secret

    path = options.secret or options.out / SECRET
    if options.secret is None and not path.exists():
        if _units(options.out):
            raise InvalidArgumentError(f"{path} is gone, but {options.out} holds work begun with it: restore it.")
        write_secret(path, new_secret())
        say(f"new secret in {path}")
    return read_secret(path)
