"""Perinucleus sampling against the published loop over rows, one thread each, at the vocabularies of named models.

`pytest --benchmark bench/bench_perinucleus.py` times it; `python bench/bench_perinucleus.py` prints a table of ratios,
measured in turn within one run, and writes bench/results/perinucleus.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from baselines_sampling import published_perinucleus_rows
from shapes import LOGITS, MODELS, make_logits
from torch import Tensor

from oml_fast import backends
from oml_fast.ops import perinucleus

THRESHOLD, WIDTH, ROWS = 0.8, 16, 16
BAND = 2e-7
RESULTS = Path(__file__).resolve().parent / "results" / "perinucleus.json"

Sampler = Callable[[Tensor], Any]


def samplers() -> dict[str, Sampler]:
    found: dict[str, Sampler] = {"published": lambda logits: published_perinucleus_rows(logits, THRESHOLD, WIDTH)}
    for backend in ("torch", "native"):
        if backends.availability(backend).available:
            found[backend] = lambda logits, backend=backend: perinucleus(
                logits, THRESHOLD, WIDTH, backend=backend, num_threads=1
            )
    return found


def assert_agrees(logits: Tensor, backend: str) -> None:
    """Equal to the reference, but where the boundary is too near to the threshold to say."""
    found = perinucleus(logits, THRESHOLD, WIDTH, backend=backend, num_threads=1)
    right = perinucleus(logits, THRESHOLD, WIDTH, backend="reference")
    clear = found.nucleus_size == right.nucleus_size
    assert ((right.nucleus_mass - found.nucleus_mass).abs()[clear] < BAND).all()
    assert torch.equal(found.token_ids[clear], right.token_ids[clear])
    torch.testing.assert_close(found.probs[clear], right.probs[clear], rtol=5e-7, atol=0)
    for mass in (found.nucleus_mass, right.nucleus_mass):
        smaller_reaches = (found.nucleus_size - right.nucleus_size).abs() == 1
        assert (clear | smaller_reaches).all()
        assert clear.all() or (mass[~clear] - THRESHOLD).abs().min() < BAND


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("sampler", ["published", "torch", "native"])
def bench_perinucleus(benchmark: Any, sampler: str, kind: str) -> None:
    if sampler not in samplers():
        pytest.skip(backends.availability(sampler).detail)
    logits = make_logits(kind, ROWS, MODELS["Llama-3.1-8B"].vocab)
    if sampler != "published":
        assert_agrees(logits, sampler)
    benchmark.extra_info.update(rows=ROWS, vocab=logits.shape[1], logits=kind)
    benchmark(samplers()[sampler], logits)


def measure(logits: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds per row of each sampler, measured in turn so that a busy machine is busy for all of them."""
    times: dict[str, list[float]] = {name: [] for name in samplers()}
    for _ in range(rounds):
        for name, sample in samplers().items():
            # Short calls are repeated: one alone would mostly measure what the sampler before it left in the caches.
            repeats = 1 if name == "published" else 3
            start = time.perf_counter()
            for _ in range(repeats):
                sample(logits)
            times[name].append((time.perf_counter() - start) / repeats / len(logits))
    return {name: {"median": statistics.median(t), "minimum": min(t)} for name, t in times.items()}


def describe_run() -> dict[str, Any]:
    """Where and on what the numbers were measured."""
    root = Path(__file__).resolve().parent.parent
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return {
        "commit": git.stdout.strip() or "none",
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "threads": 1,
        "isa": backends.cpu_isa() if backends.availability("native").available else None,
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each sampler (default: 9)")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"rows in a batch (default: {ROWS})")
    parser.add_argument(
        "--models", nargs="+", default=list(MODELS), choices=MODELS, metavar="MODEL", help="vocabularies"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = []
    titles = f"{'vocabulary of':16} {'V':>7} {'logits':9} {'dtype':8} {'nucleus':>7} {'published':>10}"
    print(titles, *(f"{name:>13}" for name in list(samplers())[1:]))
    for model in arguments.models:
        dtypes = [torch.float32, torch.bfloat16] if model == "Llama-3.1-8B" else [torch.float32]
        for kind in LOGITS:
            for dtype in dtypes:
                cases.append(run_case(model, kind, dtype, arguments.rows, arguments.rounds))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"run": describe_run(), "cases": cases}, indent=1) + "\n")
    print(f"written to {arguments.out}; microseconds per row (minimum), times faster than published", file=sys.stderr)


def run_case(model: str, kind: str, dtype: torch.dtype, rows: int, rounds: int) -> dict[str, Any]:
    logits = make_logits(kind, rows, MODELS[model].vocab, dtype)
    for backend in list(samplers())[1:]:
        assert_agrees(logits, backend)
    seconds = measure(logits, rounds)
    nucleus = int(perinucleus(logits, THRESHOLD, WIDTH).nucleus_size.median())
    ratios = {
        name: {which: seconds["published"][which] / t[which] for which in ("median", "minimum")}
        for name, t in seconds.items()
    }
    columns = [f"{seconds['published']['minimum'] * 1e6:10.0f}"]
    columns += [f"{seconds[n]['minimum'] * 1e6:6.0f} {ratios[n]['minimum']:5.1f}x" for n in seconds if n != "published"]
    label = str(dtype).removeprefix("torch.")
    print(f"{model:16} {logits.shape[1]:7} {kind:9} {label:8} {nucleus:7} {' '.join(columns)}", flush=True)
    shape = {"model": model, "vocab": logits.shape[1], "rows": rows, "logits": kind, "dtype": label}
    return shape | {"median_nucleus": nucleus, "seconds_per_row": seconds, "times_faster": ratios}


if __name__ == "__main__":
    main()
