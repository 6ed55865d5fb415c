"""`oml-fast plan` against embeddings that ran here: memory, and seconds a step.

`python bench/bench_plan.py` plans three small embeddings for this machine and runs them, prints both beside each other
and writes bench/results/plan.json. Measured memory is what torch's tensors hold at once, from loading to the last step,
by the counter that plan itself uses, here on tensors with contents: it sees nothing inside an op. What the process
holds is reported beside it. A step's seconds are CPU seconds, from two runs that differ by two epochs; the plan's are
timed on one thread, too.
`pytest bench/bench_plan.py` looks at the memory of the first one alone.
"""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from common import SECRET, Figure, base_model, command, describe_run, finish, one_thread, parser, start
from tiny import write_tiny_model

from oml_fast.embed import PRESETS, Recipe, embed
from oml_fast.embed.workload import Keys, Workload, workload
from oml_fast.fingerprint import FingerprintSet
from oml_fast.generate import PRESETS as SETTINGS
from oml_fast.generate import generate
from oml_fast.models import LanguageModel, load
from oml_fast.plan.dry_run import Cost, Held, dry_run
from oml_fast.plan.memory import memory
from oml_fast.plan.seconds import here

MEMORY_BAR, TIME_BAR = 0.15, 0.30
EPOCHS = (1, 3)
MORE = {"num_hidden_layers": 12, "hidden_size": 256, "intermediate_size": 704}


@dataclass(frozen=True, slots=True)
class Case:
    """One embedding: of a random model, or of the bundled one; `changes` to the preset's recipe."""

    preset: str
    num: int
    changes: dict[str, Any]
    load: Callable[[Path], LanguageModel]

    @property
    def recipe(self) -> Recipe:
        # The learning rate is none, so that nothing is learned, and no epoch saved.
        return replace(PRESETS[self.preset], learning_rate=1e-12, pull=0.0, **self.changes)


def random_model(folder: Path) -> LanguageModel:
    """Twelve blocks of 256 hidden units."""
    return load(write_tiny_model(folder / "model", dtype=torch.bfloat16, sizes=MORE), device="cpu")


def bundled(_: Path) -> LanguageModel:
    return base_model()


CASES = {
    "random, 12 x 256, harmless, 32 keys": Case("harmless", 32, {}, random_model),
    "bundled, quick, 64 keys": Case("quick", 64, {}, bundled),
    "bundled, harmless to the down-projections, 32 keys": Case("harmless", 32, {"write_to": "mlp_down"}, bundled),
}


def measure(case: Case, folder: Path) -> dict[str, float]:
    """Planned and measured: bytes at once, and seconds a step."""
    fingerprints = make(case, folder)
    measured = {"measured_bytes": most_bytes(case, folder, fingerprints), "process_bytes": _process_bytes()}
    seconds = [_seconds(case, folder, fingerprints, epochs) for epochs in EPOCHS]
    config, recipe, work, cost = reckoned(case, folder, fingerprints)
    steps = (EPOCHS[1] - EPOCHS[0]) * work.steps_an_epoch
    return measured | {
        "planned_bytes": memory(cost, config, work, on_cpu=True).total,
        "measured_step": (seconds[1] - seconds[0]) / steps,
        "planned_step": here(config, recipe, work, cost).step,
    }


def make(case: Case, folder: Path) -> FingerprintSet:
    return generate(case.load(folder), case.num, SECRET, settings=SETTINGS[case.preset]).fingerprints


def most_bytes(case: Case, folder: Path, fingerprints: FingerprintSet) -> float:
    """What tensors hold at once, from loading to the last step of an epoch."""
    with tempfile.TemporaryDirectory(dir=folder) as own, Held() as held:
        embed(case.load(Path(own)), fingerprints, recipe=replace(case.recipe, max_epochs=1))
    return held.most


def reckoned(case: Case, folder: Path, fingerprints: FingerprintSet) -> tuple[Any, Recipe, Workload, Cost]:
    """What `plan` reckons with: the configuration, the recipe for it, the work, and what a step costs."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        config = case.load(Path(own)).model.config
    recipe = case.recipe.for_hidden_size(config.hidden_size)
    work = workload(recipe, Keys.of_set(fingerprints))
    return config, recipe, work, dry_run(config, recipe, work)


def _seconds(case: Case, folder: Path, fingerprints: FingerprintSet, epochs: int) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as own:
        model = case.load(Path(own))
        assert model.digest == fingerprints.base_model_digest
        return embed(model, fingerprints, recipe=replace(case.recipe, max_epochs=epochs)).cpu_seconds


def _process_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def figures(found: dict[str, dict[str, float]]) -> list[Figure]:
    rows = []
    for name, case in found.items():
        for what, unit, size, bar in (("bytes", "GiB", 2**30, MEMORY_BAR), ("step", "s", 1.0, TIME_BAR)):
            planned, measured = case[f"planned_{what}"] / size, case[f"measured_{what}"] / size
            off = planned / measured - 1
            shown = f"{off:+.0%} ({planned:.2f} for {measured:.2f} {unit})"
            title = "plan, peak memory of tensors" if what == "bytes" else "plan, seconds a step"
            rows.append(Figure(title, name, shown, f"within {bar:.0%}", abs(off) <= bar, command()))
    return rows


def bench_plan(benchmark: Any, tmp_path: Path) -> None:
    case = CASES["random, 12 x 256, harmless, 32 keys"]
    with one_thread():
        fingerprints = make(case, tmp_path)
        measured = benchmark.pedantic(lambda: most_bytes(case, tmp_path, fingerprints), rounds=1)
        config, _, work, cost = reckoned(case, tmp_path, fingerprints)
        planned = memory(cost, config, work, on_cpu=True).total
    assert planned == pytest.approx(measured, rel=MEMORY_BAR)


def main() -> None:
    options = parser(__doc__, "plan")
    arguments = options.parse_args()
    start(arguments.threads)
    run = describe_run(arguments.threads)
    found = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder, one_thread():
            found[name] = measure(case, Path(folder))
        print(name, found[name], flush=True)
    finish(arguments.out, run, figures(found), {"cases": found})


if __name__ == "__main__":
    main()
