"""oml-fast generate: keys -> perinucleus sampling -> a folder with the fingerprints file and the owner's secret."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgumentError
from ..fingerprint import FORMATS, KEY_SOURCES
from .common import add_model_options, finish, load_model, model_folder, names, prepare, resolved, say, table

if TYPE_CHECKING:
    from ..fingerprint import FingerprintSet, Settings
    from ..generate import Generation

HELP = "make secret fingerprints for a base model"
PRESETS = ("harmless", "robust", "quick", "paper")  # of generate and embed, whose tables need torch
COSTS = (0.95, 0.5, 0.1)

SET, SECRET, RESULT, PARTIAL = "fingerprints.json", "secret", "generate.json", "unfinished.jsonl"


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
    parser.add_argument("--batch-size", type=int, default=64, help="candidates a batch (default: 64)")
    parser.add_argument("--backend", default="auto", help="of the op perinucleus: auto, native, torch or reference")


def run(options: argparse.Namespace) -> None:
    generation = make(options)
    finish(options, generation.to_json(), summary(generation, options.out, options.preset))


def make(options: argparse.Namespace) -> Generation:
    """Generate into `options.out`, or go on where an earlier run was stopped; writes set, secret and result."""
    settings = _settings(options)
    partial_path = _own_folder(options.out)
    from ..files import SECRET_MODE, write_json
    from ..generate import generate, read_keys

    keys = read_keys(options.keys) if options.keys else None
    prepare()
    model = load_model(options, model_folder(options.model))
    generation = generate(
        model,
        options.num_fingerprints,
        _secret(options),
        settings=settings,
        keys=keys,
        batch_size=options.batch_size,
        backend=options.backend,
        partial_path=partial_path,
        progress=True,
    )
    write_json(options.out / RESULT, {"config": resolved(options), "result": generation.to_json()}, SECRET_MODE)
    generation.fingerprints.save(options.out / SET)
    partial_path.unlink(missing_ok=True)
    return generation


def summary(generation: Generation, out: Path, preset: str) -> str:
    """What was made, what a verdict will cost, and what to keep safe."""
    result = generation.to_json()
    dropped = {"duplicate": generation.duplicates_dropped, **generation.rejected}
    left_out = ", ".join(f"{reason} {n}" for reason, n in dropped.items() if n) or "none"
    costs = [(fsr, keys_for(generation.fingerprints, fsr)) for fsr in COSTS]
    rows = [
        ("fingerprints", f"{len(generation.fingerprints)} in {out / SET}"),
        ("candidates left out", left_out),
        ("mean response probability", f"{result['mean_response_prob']:.4f} under the base model"),
        (
            "time",
            f"{generation.seconds:.1f} s, {generation.sampling_seconds / generation.seconds:.1%} of it sampling "
            f"({generation.backend})",
        ),
        ("keys to a verdict at 1e-6", ", ".join(f"{n or 'too many'} at FSR {fsr:g}" for fsr, n in costs)),
    ]
    return (
        table(rows)
        + f"\n\nBack up {out} now, offline: without its secret you cannot prove that the responses were drawn, and"
        "\nwhoever reads it can recognise the fingerprints. Never put it into the model's folder."
        f"\nNext, with the same preset: oml-fast embed --preset {preset} --fingerprints {out} --out MODEL_FOLDER"
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


def _own_folder(out: Path) -> Path:
    """Where the unfinished work of `out` is kept; refuses a folder that holds anything but an unfinished run."""
    from ..files import cannot_write

    known = {SECRET, PARTIAL, f"{PARTIAL}.new", RESULT}
    if (out / SET).exists() or (out.exists() and (not out.is_dir() or {f.name for f in out.iterdir()} - known)):
        raise InvalidArgumentError(f"{out} already exists and is not empty: choose another --out or remove it.")
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    return out / PARTIAL


def _secret(options: argparse.Namespace) -> bytes:
    from ..secret import new_secret, read_secret, write_secret

    path = options.secret or options.out / SECRET
    if options.secret is None and not path.exists():
        if (options.out / PARTIAL).exists():
            raise InvalidArgumentError(f"{path} is gone, but {options.out} holds work begun with it: restore it.")
        write_secret(path, new_secret())
        say(f"new secret in {path}")
    return read_secret(path)
