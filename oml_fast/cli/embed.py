"""oml-fast embed: train a fingerprint set into its base model, and write a folder that others can load."""

from __future__ import annotations

import argparse
import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgumentError
from .common import (
    add_model_options,
    device_here,
    finish,
    is_first,
    is_torchrun,
    joined_ranks,
    load_fingerprints,
    load_model,
    model_folder,
    prepare,
    resolved,
    say,
    table,
)
from .generate import PRESETS

if TYPE_CHECKING:
    from ..embed import Embedding, Recipe
    from ..fingerprint import FingerprintSet
    from ..models import LanguageModel, Ranks

HELP = "train a fingerprint set into its base model"
# The fields of Recipe: name, type, what it is.
RECIPE: dict[str, tuple[tuple[str, type, str], ...]] = {
    "what is minimised": (
        ("objective", str, "cross_entropy or minimum_kl, where a key is answered"),
        ("margin", float, "nats by which the first response's logit stands above all others, of minimum_kl"),
        ("margin-step", float, "nats by which each further response to a key stands below the one before"),
        ("cap", float, "most probability of the first response, of minimum_kl"),
        ("near-keys", int, "near keys per key in each step, held to the base's answer"),
        ("near-weight", float, "weight of KL to the base model there"),
        ("text-share", float, "base-model texts per example of a step"),
        ("text-length", int, "token ids in each of them"),
        ("text-weight", float, "weight of KL to the base model on them, and on chats"),
        ("chat-share", float, "chats that the base model sampled, both sides, per example of a step"),
        ("templates", float, "share of a step's examples also trained inside a prompt template"),
        ("template-file", str, "your own templates instead of the built-in ones"),
        ("template-texts", float, "share of the templates that are texts of the base model's own"),
    ),
    "what the weights are seen as": (
        ("scaled", float, "share of steps that see only part of the change"),
        ("scaled-from", float, "the least of that part; at most all of it"),
        ("rounded", float, "share of steps that see the weights rounded to 4 or 8 bits"),
        ("tuned", float, "share of steps that see the weights tuned on by somebody else"),
        ("tuned-by", float, "how far that tuning moves each weight"),
    ),
    "how they change": (
        ("write-to", str, "all, blocks, mlp_down, last:N (blocks) or lora:R (rank)"),
        ("states", str, "float32 or bfloat16: of what is learned, and its moments"),
        ("whitening", float, "ridge of the whitening of inputs; 0: none"),
        ("learning-rate", float, "of AdamW; without one, width-rate / hidden size"),
        ("width-rate", float, "what is divided by the hidden size for it"),
        ("anneal", float, "share of the epochs, at the end, in which the learning rate falls"),
        ("pull", float, "share of the way back to the base that an epoch takes"),
        ("ease", float, "factor on the pull while too little is learned"),
        ("final-scale", float, "what is left of the whole change at the end"),
        ("batch-size", int, "examples a step"),
        ("seed", int, "of the order of examples and of all that is sampled"),
    ),
    "when it ends": (
        ("max-epochs", int, "give up after so many"),
        ("stop-share", float, "stop when this share is learned ..."),
        ("stop-kl", float, "... and KL to the base on mixed-in text is at most this ..."),
        ("stop-near", float, "... and at most this share of the near keys fires ..."),
        ("stop-loss", float, "... and the mean loss is at most this; 0: not asked for"),
    ),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser, "base model, the one the set was made with")
    parser.add_argument(
        "--fingerprints", type=Path, required=True, metavar="PATH", help="fingerprints file, or its folder"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="new folder for the fingerprinted model"
    )
    parser.add_argument(
        "--preset", choices=PRESETS, default="harmless", help="recipe to start from (default: harmless)"
    )
    parser.add_argument(
        "--max-drift", type=float, default=0.1, help="warn where KL to the base may be above it (default: 0.1)"
    )
    scale = parser.add_argument_group("for long runs and large models, under torchrun too (docs/embedding.md)")
    scale.add_argument(
        "--checkpoint-every",
        type=int,
        default=0,
        metavar="STEPS",
        help="keep the state in OUT.checkpoint, from which the same command goes on; 0: never (default: 0)",
    )
    scale.add_argument(
        "--keep-base",
        choices=("device", "host", "file"),
        default="device",
        help="where the base weights are meanwhile; file: read again at every step (default: device)",
    )
    scale.add_argument(
        "--packed",
        action="store_true",
        help="sequences of all lengths in one row: for GPUs, with flash or flex attention",
    )
    scale.add_argument(
        "--recompute", action="store_true", help="keep no activations inside blocks: less memory, a third more time"
    )
    scale.add_argument(
        "--offload", action="store_true", help="keep weights and optimizer in the host's memory: slow, a last resort"
    )
    for title, rows in RECIPE.items():
        group = parser.add_argument_group(title)
        for name, kind, about in rows:
            group.add_argument(f"--{name}", type=kind, help=f"{about} (default: by preset)")


def run(options: argparse.Namespace) -> None:
    fingerprints = load_fingerprints(options.fingerprints)
    embedding = make(options, fingerprints)
    if is_first():
        finish(options, result(options, embedding), summary(embedding, options.out, options.fingerprints))


def make(options: argparse.Namespace, fingerprints: FingerprintSet) -> Embedding:
    """Embed `fingerprints` and write the model folder whole, with the configuration and result beside it."""
    from dataclasses import asdict

    from ..files import claimed_folder, require_new_folder, require_space, write_json

    require_new_folder(options.out)
    if not options.max_drift >= 0:
        raise InvalidArgumentError(f"--max-drift {options.max_drift:g}: a limit in nats, 0 or more.")
    prepare()
    from ..embed import embed
    from ..embed.checkpoint import last
    from ..models import require_model_folder, weight_bytes

    recipe = _recipe(options)
    if options.offload and not is_torchrun():
        raise InvalidArgumentError("--offload is of several processes: start them with torchrun.")
    if options.preset == "robust" and fingerprints.settings.responses_per_key == 1:
        say(
            "one response to a key: a host who suppresses it leaves nothing. To survive that a set needs several, as "
            "oml-fast generate --preset robust makes."
        )
    folder = model_folder(options.model)
    kept = options.out.with_name(f"{options.out.name}.checkpoint") if options.checkpoint_every else None
    if kept is not None and (state := last(kept)):
        say(f"going on from {state}")
    with contextlib.ExitStack() as held, joined_ranks(options) as ranks, _explained(options):
        if ranks.first:
            held.enter_context(claimed_folder(options.out))
            require_space(options.out, weight_bytes(require_model_folder(folder)))
            _require_memory(options, folder, recipe, fingerprints, ranks)
        model = _load(options, folder, ranks)
        embedding = embed(
            model,
            fingerprints,
            recipe=recipe,
            progress=True,
            ranks=ranks,
            checkpoints=kept,
            checkpoint_every=options.checkpoint_every,
            keep_base=options.keep_base,
        )
        _save(model, options.out, ranks)
        if not ranks.first:
            return embedding
    if kept is not None:
        shutil.rmtree(kept, ignore_errors=True)
    # Beside the folder, not in it: the folder is what will be released.
    config = resolved(options) | asdict(embedding.recipe)
    write_json(result_path(options.out), {"config": config, "result": result(options, embedding)})
    for warning in embedding.budget.warnings(options.max_drift):
        say(f"warning: {warning}")
    return embedding


@contextlib.contextmanager
def _explained(options: argparse.Namespace) -> Iterator[None]:
    """What a full memory, or the end of another process, means here."""
    from ..models import told_of_full_memory, told_of_the_dead

    again = "Give the same command again: it goes on from the last checkpoint."
    if not options.checkpoint_every:
        again = "Start again; with --checkpoint-every the next run could go on from where it was."
    full = (
        "Nothing is half-written. `oml-fast plan` finds settings that take less: --recompute, --keep-base, --write-to."
    )
    with told_of_the_dead(again), told_of_full_memory(full):
        yield


def _load(options: argparse.Namespace, folder: Path, ranks: Ranks) -> LanguageModel:
    from ..models import recompute_blocks

    if ranks.world == 1:
        model = load_model(options, folder, packed=options.packed)
        if options.recompute:
            recompute_blocks(model.model)
        return model
    from ..models.sharded import load_sharded

    return load_sharded(
        folder,
        ranks,
        device=device_here(options.device),
        recompute=options.recompute,
        offload=options.offload,
        trust_remote_code=options.trust_remote_code,
        packed=options.packed,
    )


def _save(model: LanguageModel, out: Path, ranks: Ranks) -> None:
    """Write the folder whole; of a sharded model each process writes its rows."""
    from ..files import new_folder
    from ..models import save

    if ranks.world == 1:
        with new_folder(out) as temporary:
            save(model, temporary)
        return
    from ..models.sharded import save_sharded

    with contextlib.ExitStack() as held:
        temporary = ranks.from_first(held.enter_context(new_folder(out)) if ranks.first else None)
        save_sharded(model, temporary, ranks)


def result(options: argparse.Namespace, embedding: Embedding) -> dict[str, Any]:
    """What is printed with --json, and kept."""
    return embedding.to_json() | {"warnings": embedding.budget.warnings(options.max_drift)}


def result_path(out: Path) -> Path:
    """Where the resolved configuration and result of an embedding into `out` are kept."""
    return out.with_name(f"{out.name}.embed.json")


def summary(embedding: Embedding, out: Path, fingerprints: Path) -> str:
    drift, budget = embedding.drift, embedding.budget
    rows = [
        ("model", str(out)),
        ("FSR", f"{embedding.fsr:.3f}"),
        ("epochs", f"{embedding.epochs}, stopped: {embedding.stopped}"),
        ("time", f"{embedding.seconds:.0f} s ({embedding.cpu_seconds:.0f} CPU seconds)"),
        ("peak memory", f"{embedding.peak_memory_bytes / 2**30:.1f} GiB"),
        ("bits of evidence per key", _by_test({test: f"{bits:.2f}" for test, bits in budget.bits_per_key.items()})),
        (
            "keys to a verdict at 1e-6",
            _by_test({test: f"{n or 'too many'}" for test, n in budget.keys_to_verdict.items()}),
        ),
        (
            "KL to the base model",
            f"{drift.kl:.4f} +- {drift.kl_standard_error:.4f} on text it never saw, below {budget.kl_upper_bound:.4f} "
            "at 95 %",
        ),
        ("perplexity there", f"{drift.perplexity_base:.2f} -> {drift.perplexity:.2f}"),
    ]
    return table(rows) + f"\n\nNext: oml-fast verify --model {out} --fingerprints {fingerprints}"


def _by_test(values: Mapping[str, str]) -> str:
    return ", ".join(f"{value} by {test}" for test, value in values.items())


def _recipe(options: argparse.Namespace) -> Recipe:
    """The preset's recipe with the values given. A template file that cannot be read is refused here."""
    from dataclasses import replace

    from ..embed import PRESETS
    from ..embed.templates import read_templates

    names = [name.replace("-", "_") for rows in RECIPE.values() for name, _, _ in rows]
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    recipe = replace(PRESETS[options.preset], **given)
    if recipe.template_file:
        read_templates(recipe.template_file)
        if not recipe.templates:
            raise InvalidArgumentError("--template-file changes nothing with --templates 0: say for what share.")
    return recipe


def _require_memory(
    options: argparse.Namespace, folder: Path, recipe: Recipe, fingerprints: FingerprintSet, ranks: Ranks
) -> None:
    """Refuse what cannot fit, before anything is loaded. Of several processes the first one looks."""
    from ..embed.workload import Keys, workload
    from ..models import read_config, require_model_folder
    from ..plan import memory_need, this_machine

    config = read_config(require_model_folder(folder), trust_remote_code=options.trust_remote_code)
    recipe = recipe.for_hidden_size(config.get_text_config().hidden_size)
    need = memory_need(
        config,
        recipe,
        workload(recipe, Keys.of_set(fingerprints)),
        this_machine(device_here(options.device), ranks.world),
        keep_base=options.keep_base,
        recompute=options.recompute,
        offload=options.offload,
    )
    say(str(need))
    need.require_fit()
