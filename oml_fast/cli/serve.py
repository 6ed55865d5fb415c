"""oml-fast serve: vllm serve, which checks a permission token on every request."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgumentError
from .common import say

if TYPE_CHECKING:
    from ..serving.gate_settings import GateSettings

HELP = "vllm serve behind the permission gate; options of vLLM come after MODEL"
_OURS = ("owner_key", "keys", "store", "registry", "metrics", "model_digest")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--owner-key", type=Path, metavar="FILE", help="the owner's verification key")
    parser.add_argument("--keys", type=Path, metavar="FILE", help="the owner's list of keys")
    parser.add_argument(
        "--store", metavar="FILE_OR_URL", help="nonces and quotas (default: permissions.sqlite beside the list of keys)"
    )
    parser.add_argument("--registry", metavar="FILE_OR_URL", help="where usage is recorded")
    parser.add_argument("--metrics", metavar="HOST:PORT", help="where Prometheus reads counters")
    parser.add_argument("--model-digest", metavar="HEX", help="the model's (default: computed from its folder)")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="all of that and more in a file, and no --keys")
    parser.add_argument("model", metavar="MODEL", help="folder of the model")
    parser.add_argument("vllm_options", nargs=argparse.REMAINDER, metavar="...", help="options of vllm serve")


def run(options: argparse.Namespace) -> None:
    from ..serving.gate_settings import VARIABLE, read_gate_settings
    from ..serving.serve import check_settings, vllm_command

    for option in options.vllm_options:
        if option.partition("=")[0].lstrip("-").replace("-", "_") in (*_OURS, "settings"):
            raise InvalidArgumentError(f"{option.partition('=')[0]} is no option of vLLM: write it before MODEL.")
    command = vllm_command(options.model, options.vllm_options)
    path = _written(options) if options.settings is None else _given(options)
    settings = read_gate_settings(path)
    check_settings(settings)
    say(_started(settings, path))
    sys.stdout.flush()
    os.execve(command[0], command, {**os.environ, VARIABLE: str(path.resolve())})  # noqa: S606 - no shell is wanted


def _given(options: argparse.Namespace) -> Path:
    both = [f"--{name.replace('_', '-')}" for name in _OURS if getattr(options, name) is not None]
    if both:
        raise InvalidArgumentError(f"{', '.join(both)} and --settings are both given: write all of it into the file.")
    path: Path = options.settings
    return path


def _written(options: argparse.Namespace) -> Path:
    """The settings that the options make, as a file beside the store."""
    import json

    from ..files import write_atomic
    from ..serving.serve import served_names

    if options.owner_key is None or options.keys is None:
        raise InvalidArgumentError(
            "whose permissions count? Give the owner's --owner-key and --keys (oml-fast permission keygen makes them)."
        )
    store = options.store or str(options.keys.resolve().with_name("permissions.sqlite"))
    digest = options.model_digest or _digest(Path(options.model))
    values: dict[str, Any] = {
        "owner_key": str(options.owner_key.resolve()),
        "keys": str(options.keys.resolve()),
        "store": store if "://" in store else str(Path(store).resolve()),
        "models": dict.fromkeys(served_names(options.model, options.vllm_options), digest),
    }
    if options.registry is not None:
        values["registry"] = options.registry if "://" in options.registry else str(Path(options.registry).resolve())
    if options.metrics is not None:
        values["metrics"] = options.metrics
    path: Path = options.keys.resolve().with_name("permission-gate.yaml")
    write_atomic(path, json.dumps(values, indent=2) + "\n", 0o600)
    return path


def _digest(folder: Path) -> str:
    from ..models.digests import model_digest

    if not any(folder.glob("*.safetensors")):
        raise InvalidArgumentError(f"{folder} holds no safetensors weights: name a folder, or give --model-digest.")
    say(f"computing the digest of {folder}")
    return model_digest(folder)


def _started(settings: GateSettings, path: Path) -> str:
    names = ", ".join(f"{name} ({digest[:12]})" for name, digest in settings.models.items())
    return f"serving {names} to whoever has a permission; settings: {path}"
