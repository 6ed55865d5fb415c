"""oml-fast evaluate utility: what became of a model's ordinary abilities, paired with its base model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .common import add_device_options, finish, load_model, model_folder, names, prepare, public_data, say, table

if TYPE_CHECKING:
    from ..evaluate.utility import Utility

HELP = "compare a model with its base on text and tasks, item by item"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="the model to measure")
    parser.add_argument(
        "--base", type=Path, metavar="FOLDER", help="its base model (default: the bundled SmolLM2-135M-Instruct)"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="public data (default: what OML_FAST_DATA names)")
    parser.add_argument(
        "--tasks", metavar="NAMES", help="of sampled,text,blimp,hellaswag (default: those whose data is there)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most N items a task and sequences a text")
    parser.add_argument(
        "--harness-tasks",
        metavar="NAMES",
        help="tasks of lm-evaluation-harness as well: names, or paths of YAML files (needs the extra eval)",
    )
    parser.add_argument("--batch-size", type=int, default=16, help="of lm-evaluation-harness (default: 16)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON report here")
    add_device_options(parser)


def run(options: argparse.Namespace) -> None:
    measured = make(options)
    finish(options, measured.to_json(), text(measured))


def make(options: argparse.Namespace) -> Utility:
    """Measure, and write the report where `--out` says."""
    from ..files import require_writable, write_json

    if options.out:
        require_writable(options.out)
    data = public_data(options)
    prepare()
    from ..evaluate.utility import utility

    base = load_model(options, model_folder(options.base))
    measured = utility(
        base,
        load_model(options, options.model),
        data=data,
        tasks=names(options.tasks) if options.tasks else None,
        limit=options.limit,
        harness_tasks=names(options.harness_tasks) if options.harness_tasks else (),
        batch_size=options.batch_size,
    )
    for name, reason in measured.skipped.items():
        say(f"not measured: {name}: {reason}")
    if options.out:
        write_json(options.out, measured.to_json())
    return measured


def text(measured: Utility) -> str:
    """A table of every comparison."""
    rows = [("", "base to model: difference ± standard error, 95 % sure that it lost less than; items lost, won")]
    for name, part in measured.texts.items():
        shown = f"{part.perplexity_base:.3f}, {part.perplexity:.3f}: {part.perplexity / part.perplexity_base:.4f} times"
        rows += [
            (f"{name}: perplexity", shown),
            (f"{name}: KL to the base", f"{part.kl:.4f} ({part.kl_standard_error:.4f}) nats a token id"),
        ]
    return table(rows + [(name, str(paired)) for name, paired in measured.rows()])
