"""The suspects that a command names: weights in a folder, with transformers or vLLM, or an endpoint."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgumentError
from .common import add_device_options, load_model, prepare

if TYPE_CHECKING:
    from ..completer import Completer
    from ..fingerprint import FingerprintSet

ENGINES = ("transformers", "vllm")


def add_suspect_options(parser: argparse.ArgumentParser) -> None:
    from .endpoint_options import add_endpoint_options

    parser.add_argument("--model", type=Path, metavar="FOLDER", help="the suspect model's weights")
    parser.add_argument(
        "--engine", choices=ENGINES, default="transformers", help="what runs the weights (default: transformers)"
    )
    parser.add_argument("--dtype", default="auto", help="of the weights in vLLM (default: auto)")
    parser.add_argument(
        "--tensor-parallel-size",
        type=int,
        default=1,
        metavar="N",
        help="GPUs for one model in vLLM (default: 1)",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="keys a batch, with transformers (default: 64)")
    add_endpoint_options(parser)
    add_device_options(parser)


def suspect(options: argparse.Namespace, sets: Iterable[FingerprintSet]) -> Completer:
    """The suspect that the options name, ready to be asked these sets. InvalidArgumentError: they name none, or two."""
    if (options.model is None) == (options.endpoint is None):
        raise InvalidArgumentError("name one suspect: its weights with --model FOLDER, or --endpoint URL.")
    if options.endpoint is not None:
        from .endpoint_options import endpoint_from

        return endpoint_from(options, sorted({name for made in sets for name in made.settings.formats}))
    if not options.model.is_dir():
        raise InvalidArgumentError(f"there is no model folder {options.model}: name the suspect's with --model.")
    prepare()
    if options.engine == "vllm":
        from ..serving import VllmCompleter

        return VllmCompleter(options.model, dtype=options.dtype, tensor_parallel_size=options.tensor_parallel_size)
    from ..models import HfCompleter

    return HfCompleter(load_model(options, options.model), batch_size=options.batch_size, progress=True)


def suspect_name(options: argparse.Namespace) -> str:
    """What reports and the registry call the suspect: `--suspect`, or what is asked."""
    if options.suspect:
        return str(options.suspect)
    if options.endpoint is not None:
        return f"{options.endpoint_model or 'model'} at {options.endpoint}"
    return str(options.model)


def read_suspects(path: Path, options: argparse.Namespace) -> dict[str, argparse.Namespace]:
    """Each suspect's options, by name: a YAML list of mappings with a `name` and the options of one suspect."""
    from ..settings import read_config

    listed = read_config(path).get("suspects")
    if not isinstance(listed, list) or not listed or not all(isinstance(entry, dict) for entry in listed):
        raise InvalidArgumentError(
            f"{path}: it needs a list `suspects`, each with a name and a model or an endpoint (docs/verification.md)."
        )
    found: dict[str, argparse.Namespace] = {}
    for entry in listed:
        own = argparse.Namespace(**{**vars(options), "suspect": None})
        for key, value in entry.items():
            _set(own, str(key), value, path)
        own.suspect = suspect_name(own)
        if own.suspect in found:
            raise InvalidArgumentError(f"{path}: two suspects are called {own.suspect!r}: give each its own name.")
        found[own.suspect] = own
    return found


def loaders(
    suspects: Mapping[str, argparse.Namespace], sets: Mapping[str, FingerprintSet]
) -> dict[str, Callable[[], Completer]]:
    """For each suspect a function that loads it."""

    def loader(options: argparse.Namespace) -> Callable[[], Completer]:
        return lambda: suspect(options, sets.values())

    return {name: loader(options) for name, options in suspects.items()}


def _set(options: argparse.Namespace, key: str, value: Any, path: Path) -> None:
    name = "suspect" if key == "name" else key.replace("-", "_")
    if not hasattr(options, name):
        raise InvalidArgumentError(f"{path}: {key!r} is no option of a suspect.")
    setattr(options, name, Path(value) if name == "model" else value)
