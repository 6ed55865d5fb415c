"""oml-fast embed: train a fingerprint set into its base model, and write a folder that others can load."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .common import (
    add_model_options,
    finish,
    load_fingerprints,
    load_model,
    model_folder,
    prepare,
    resolved,
    say,
    table,
)

if TYPE_CHECKING:
    from ..embed import Embedding, Recipe
    from ..fingerprint import FingerprintSet

HELP = "train a fingerprint set into its base model"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser, "base model, the one the set was made with")
    parser.add_argument(
        "--fingerprints", type=Path, required=True, metavar="PATH", help="fingerprints file, or its folder"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="new folder for the fingerprinted model"
    )
    parser.add_argument("--learning-rate", type=float, help="of AdamW (default: 0.75 / hidden size)")
    parser.add_argument(
        "--pull", type=float, help="share of the way back to the base that an epoch takes (default: 0.75)"
    )
    parser.add_argument("--ease", type=float, help="factor on the pull while too little is learned (default: 0.8)")
    parser.add_argument("--batch-size", type=int, help="examples a step (default: 256)")
    parser.add_argument("--max-epochs", type=int, help="give up after so many (default: 40)")
    parser.add_argument("--stop-share", type=float, help="stop when this share is learned (default: 0.99) ...")
    parser.add_argument(
        "--stop-kl", type=float, help="... and KL to the base on mixed-in text is this low (default: 0.12)"
    )
    parser.add_argument("--text-share", type=float, help="base-model texts per example of a step (default: 0.25)")
    parser.add_argument("--text-length", type=int, help="token ids in each of them (default: 32)")
    parser.add_argument("--text-weight", type=float, help="weight of KL to the base model on them (default: 1)")
    parser.add_argument("--seed", type=int, help="of the order of examples and the texts (default: 0)")


def run(options: argparse.Namespace) -> None:
    fingerprints = load_fingerprints(options.fingerprints)
    embedding = make(options, fingerprints)
    finish(options, embedding.to_json(), summary(embedding, options.out))


def make(options: argparse.Namespace, fingerprints: FingerprintSet) -> Embedding:
    """Embed `fingerprints` and write the model folder whole, with the configuration and result beside it."""
    from ..files import new_folder, require_new_folder, write_json

    require_new_folder(options.out)
    prepare()
    from ..embed import embed
    from ..models import save

    recipe = _recipe(options)
    folder = model_folder(options.model)
    _require_memory(options, folder, recipe, fingerprints)
    model = load_model(options, folder)
    embedding = embed(model, fingerprints, recipe=recipe, progress=True)
    with new_folder(options.out) as temporary:
        save(model, temporary)
    # Beside the folder, not in it: the folder is what will be released.
    write_json(result_path(options.out), {"config": resolved(options), "result": embedding.to_json()})
    return embedding


def result_path(out: Path) -> Path:
    """Where the resolved configuration and result of an embedding into `out` are kept."""
    return out.with_name(f"{out.name}.embed.json")


def summary(embedding: Embedding, out: Path) -> str:
    drift = embedding.drift
    rows = [
        ("model", str(out)),
        ("FSR", f"{embedding.fsr:.3f}"),
        ("epochs", f"{embedding.epochs}, stopped: {embedding.stopped}"),
        ("time", f"{embedding.seconds:.0f} s ({embedding.cpu_seconds:.0f} CPU seconds)"),
        ("peak memory", f"{embedding.peak_memory_bytes / 2**30:.1f} GiB"),
        ("KL to the base model", f"{drift.kl:.4f} +- {drift.kl_standard_error:.4f} on text it never saw"),
        ("perplexity there", f"{drift.perplexity_base:.2f} -> {drift.perplexity:.2f}"),
    ]
    return table(rows) + f"\n\nNext: oml-fast verify --model {out} --fingerprints PATH"


def _recipe(options: argparse.Namespace) -> Recipe:
    from dataclasses import fields

    from ..embed import Recipe

    given = {f.name: getattr(options, f.name, None) for f in fields(Recipe)}
    return Recipe(**{name: value for name, value in given.items() if value is not None})


def _require_memory(options: argparse.Namespace, folder: Path, recipe: Recipe, fingerprints: FingerprintSet) -> None:
    from ..embed import memory_need
    from ..models import require_model_folder, resolve_device

    settings = fingerprints.settings
    prompts = [len(asking.prompt_ids) for f in fingerprints for asking in f.askings.values()]
    longest = max(prompts, default=0) + settings.response_length
    count = len(prompts) * settings.responses_per_key
    need = memory_need(require_model_folder(folder), recipe, count, longest, resolve_device(options.device))
    say(str(need))
    need.require_fit()
