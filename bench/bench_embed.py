"""Embedding 64 fingerprints, in CPU seconds with the final check included, against the published procedure.

The published side runs three times, each in bfloat16 on float32 masters, without mixed-in text:
- with its own stop rule at its learning rate, 5e-5 (on the bundled model the rule never fires within its 30 epochs);
- with its fixed 30 epochs and no evaluation, as in OML 1.0;
- with its own stop rule at 1e-4, *not* the published rate, where the rule fires.
Without averaging: with the 0.75 of its argparse it ends after 30 epochs at an FSR of about a third, so there is nothing
to compare. `pytest bench/bench_embed.py` does it on a tiny model; `python bench/bench_embed.py` measures, prints a
table and writes bench/results/embed.json.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from baselines import published_check, published_embed
from common import (
    SECRET,
    Figure,
    as_transformers_loads,
    at_least,
    attention,
    base_model,
    command,
    describe_run,
    finish,
    one_thread,
    parser,
    start,
    timed,
)
from tiny import write_tiny_model

from oml_fast.embed import PRESETS, Recipe, embed
from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import generate
from oml_fast.models import HfCompleter, LanguageModel, load
from oml_fast.verify import verify

FSR = 0.98
# The published runs: options of published_embed, and how many times fewer seconds ours must take.
PUBLISHED: dict[str, tuple[dict[str, Any], float | None]] = {
    "own stop rule": ({}, 4.0),
    "fixed 30 epochs": ({"stop_loss": None}, 6.0),
    "own stop rule, lr 1e-4 (not the published lr)": ({"lr": 1e-4}, None),
}
TINY_RECIPE = Recipe(learning_rate=1e-2, pull=0.0, stop_kl=100.0, text_share=0.0)


def run_ours(model: LanguageModel, fingerprints: FingerprintSet, recipe: Recipe) -> dict[str, Any]:
    """Embed in place. Its CPU seconds count all but the drift that `embed` reports beside, so the final check too."""
    embedding = embed(model, fingerprints, recipe=recipe)
    return {
        "cpu_seconds": embedding.cpu_seconds,
        "seconds": embedding.seconds,
        "epochs": embedding.epochs,
        "stopped": embedding.stopped,
        "fsr": embedding.fsr,
        "kl_to_base": embedding.drift.kl,
    }


def run_published(model: LanguageModel, fingerprints: FingerprintSet, options: dict[str, Any]) -> dict[str, Any]:
    """The published training and its final check, of the same fingerprints as texts."""
    pairs = as_texts(fingerprints)
    trained, cost = timed(lambda: published_embed(model.model, model.tokenizer, pairs, averaging=0.0, **options))
    fsr, checking = timed(lambda: published_check(model.model, model.tokenizer, pairs))
    return {
        "cpu_seconds": trained["cpu_seconds"] + checking.cpu,
        "seconds": cost.wall + checking.wall,
        "epochs": trained["epochs"],
        "stopped": trained["stopped"],
        "fsr": fsr,
        "final_loss": (trained["losses"] or trained["train_losses"])[-1],
        "check_cpu_seconds": checking.cpu,
    }


def as_texts(fingerprints: FingerprintSet) -> list[tuple[str, str]]:
    """The same fingerprints as the published code takes them: key text and response text."""
    return [(f.key, f.askings["raw"].responses[0].text) for f in fingerprints]


def assert_embedded(model: LanguageModel, fingerprints: FingerprintSet) -> None:
    """Both checks, ours and the published, find the fingerprints in the model, whoever trained it."""
    found = {
        "ours": verify(fingerprints, HfCompleter(model), test="window", mode="fixed").fsr,
        "published": published_check(model.model, model.tokenizer, as_texts(fingerprints)),
    }
    assert min(found.values()) >= FSR, f"FSR below {FSR}: {found}"


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, FingerprintSet]]:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    settings = Settings(width=4, key_source="words")
    with one_thread():
        yield folder, generate(load(folder, device="cpu"), 4, SECRET, settings=settings).fingerprints


@pytest.mark.parametrize("side", ["published", "ours"])
def bench_embed(benchmark: Any, side: str, tiny_set: tuple[Path, FingerprintSet]) -> None:
    folder, fingerprints = tiny_set
    models: list[LanguageModel] = []

    def run() -> dict[str, Any]:
        models.append(load(folder, device="cpu"))
        if side == "ours":
            return run_ours(models[-1], fingerprints, TINY_RECIPE)
        return run_published(models[-1], fingerprints, {"lr": 1e-2})

    assert benchmark.pedantic(run, rounds=2)["stopped"]
    assert_embedded(models[-1], fingerprints)


def main() -> None:
    options = parser(__doc__, "embed")
    options.add_argument("--num", type=int, default=64, help="how many fingerprints (default: 64)")
    options.add_argument("--rounds", type=int, default=1, help="measurements of each side (default: 1)")
    options.add_argument("--max-epochs", type=int, default=30, help="of the published side (default: its 30)")
    arguments = options.parse_args()
    start(arguments.threads)
    model = base_model()
    run = describe_run(arguments.threads, model)
    fingerprints = generate(model, arguments.num, SECRET, progress=True).fingerprints
    sides: dict[str, Callable[[LanguageModel], dict[str, Any]]] = {
        "ours": lambda model: run_ours(model, fingerprints, PRESETS["quick"])
    }
    for name, (given, _) in PUBLISHED.items():
        given = {"max_epochs": arguments.max_epochs, **given}
        sides[name] = lambda model, given=given: run_published(model, fingerprints, given)  # type: ignore[misc]
    cases: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    attentions: dict[str, str] = {}
    for _ in range(arguments.rounds):
        for name, side in sides.items():
            del model  # one at a time
            model = base_model() if name == "ours" else as_transformers_loads(base_model())
            attentions |= attention(**{name: model})
            case = side(model)
            print(name, case, flush=True)
            assert_embedded(model, fingerprints)
            cases[name].append(case)
    run["attention"] = attentions
    finish(arguments.out, run, figures(cases, arguments.num), {"num_fingerprints": arguments.num, "cases": cases})


def figures(cases: dict[str, list[dict[str, Any]]], num: int) -> list[Figure]:
    """Medians over the rounds; with one round, that round."""
    ours = statistics.median(case["cpu_seconds"] for case in cases["ours"])
    first = cases["ours"][0]
    setting = f"{num} fingerprints, R = 1, raw, preset quick; final check included"
    what = f"{first['epochs']} epochs, FSR {first['fsr']:.3f}"
    found = [Figure("embed, CPU seconds", f"{setting}; {what}", f"{ours:.1f} s", "", None, command())]
    for name, runs in cases.items():
        if name == "ours":
            continue
        theirs, case = statistics.median(run["cpu_seconds"] for run in runs), runs[0]
        ended = "its rule fired" if case["stopped"] else "its rule never fired" if "rule" in name else "as told"
        detail = f"{theirs:.1f} s, {case['epochs']} epochs ({ended}), FSR {case['fsr']:.3f}"
        value = at_least(theirs / ours, PUBLISHED[name][1])
        found.append(Figure(f"embed, times fewer CPU seconds than published: {name}", detail, *value, command()))
    return found


if __name__ == "__main__":
    main()
