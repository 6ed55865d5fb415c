"""oml-fast registry add-model: record which model carries a set."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InvalidArgumentError
from .common import finish
from .registry_common import SHORT, add_registry_option, add_set_option, chosen_set, open_registry

HELP = "record which model carries a set"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="the fingerprinted model")
    add_set_option(parser, required=True, what="the set that is in it")
    parser.add_argument("--name", metavar="NAME", help="what to call the model (default: its folder)")
    add_registry_option(parser)


def run(options: argparse.Namespace) -> None:
    if not any(options.model.glob("*.safetensors")):
        raise InvalidArgumentError(f"{options.model} holds no weights in safetensors: name a model's folder.")
    from ..models.digests import model_digest

    with open_registry(options) as registry:
        set_digest = str(chosen_set(registry, options))
        digest = model_digest(options.model)
        path = options.name or str(options.model)
        registry.add_model(digest, set_digest, path)
        result = {"registry": registry.name, "digest": digest, "set_digest": set_digest, "path": path}
        finish(options, result, f"The model {path} is recorded with the set {set_digest[:SHORT]}.")
