"""Perinucleus sampling: every backend against the published loop over rows, a batched sort, and what comes nearest.

`python bench/bench_perinucleus.py` measures all sides in turn at the vocabularies of named models, batches of 1 to
1,024 rows, realistic and flat logits, float32 and bfloat16, and writes bench/results/perinucleus.json; with
`--device cuda` it measures on a GPU, tells bytes over time as a share of a copy's in the same run, and writes
perinucleus_cuda.json. What takes long is timed on fewer rows; all times are of a row. torch.topk and the top-p kernels
of vLLM and flashinfer do not find a perinucleus: they are the nearest operations. `pytest --benchmark
bench/bench_perinucleus.py` times a few.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from baselines_sampling import batched_sort, other_samplers, published_perinucleus_rows
from common import Figure, at_least, command, finish, in_turn, one_thread, parser
from devices import copy_bandwidth, described, gpu_seconds, parse
from shapes import DISTINCT_ROWS, LOGITS, MODELS, VOCABULARIES, make_batch
from torch import Tensor

from oml_fast import backends
from oml_fast.ops import Perinucleus, perinucleus

THRESHOLD, WIDTH = 0.8, 16
BATCH_SIZES = (1, 16, 128, 1024)
DTYPES = (torch.float32, torch.bfloat16)
BAND = 2e-7
PUBLISHED, SORT = "published loop", "batched sort"
BACKENDS = {"cpu": ("native", "torch"), "cuda": ("cuda", "triton", "torch")}  # the best first
PARTS = {"cuda": "cuda_kernels"}
# The most rows of a batch that are timed. On a CPU what takes long is timed on fewer rows than the op.
MOST_ROWS = {PUBLISHED: 16}
MOST_ROWS_ON_CPU, WHOLE_ON_CPU = 128, ("native",)
REPEATS = 3
ROUNDS = {"cpu": 9, "cuda": 20}
MAIN_VOCABULARY, MAIN_ROWS, SHARE_ROWS = MODELS["Llama-3.1-8B"].vocab, 16, 128
CPU_BARS = {"realistic": 100.0, "flat": 20.0}
SHARE_BAR, SORT_BAR = 0.6, 1.0

Sampler = Callable[[Tensor], Any]


def available(device: str) -> list[str]:
    """Backends that can compute there, the best first; the reference is what they are checked against."""
    return [name for name in BACKENDS[device] if backends.availability(PARTS.get(name, name)).available]


def samplers(device: str, threads: int = 1) -> dict[str, Sampler]:
    """Every side by name. On a GPU nothing is checked, since the check waits."""
    found: dict[str, Sampler] = {
        name: lambda logits, name=name: perinucleus(
            logits, THRESHOLD, WIDTH, backend=name, num_threads=threads, checked=device == "cpu"
        )
        for name in available(device)
    }
    found[PUBLISHED] = lambda logits: published_perinucleus_rows(logits, THRESHOLD, WIDTH)
    for name, sample in other_samplers(device).items():
        found[name] = lambda logits, sample=sample: sample(logits, THRESHOLD, WIDTH)
    return found


def absent(device: str) -> dict[str, str]:
    """Why a side is missing."""
    missing = {
        name: backends.availability(PARTS.get(name, name)).detail
        for name in BACKENDS[device]
        if name not in available(device)
    }
    others = other_samplers(device)
    wanted = ("vLLM top-p", "flashinfer top-p") if device == "cuda" else ("vLLM top-p",)
    return missing | {name: "not installed" for name in wanted if name not in others}


def assert_agrees(logits: Tensor, backend: str) -> None:
    """Equal to the reference, but where the boundary is too near to the threshold to say; repeated rows are equal."""
    result = perinucleus(logits, THRESHOLD, WIDTH, backend=backend, num_threads=1)
    few = Perinucleus(*(column[:DISTINCT_ROWS] for column in result))
    again = torch.arange(len(logits), device=logits.device) % DISTINCT_ROWS
    assert all(torch.equal(column, first[again]) for column, first in zip(result, few, strict=True))
    found = Perinucleus(*(column.cpu() for column in few))
    right = perinucleus(logits[:DISTINCT_ROWS].cpu(), THRESHOLD, WIDTH, backend="reference")
    clear = found.nucleus_size == right.nucleus_size
    assert ((right.nucleus_mass - found.nucleus_mass).abs()[clear] < BAND).all()
    assert torch.equal(found.token_ids[clear], right.token_ids[clear])
    torch.testing.assert_close(found.probs[clear], right.probs[clear], rtol=5e-7, atol=0)
    for mass in (found.nucleus_mass, right.nucleus_mass):
        smaller_reaches = (found.nucleus_size - right.nucleus_size).abs() == 1
        assert (clear | smaller_reaches).all()
        assert clear.all() or (mass[~clear] - THRESHOLD).abs().min() < BAND


def assert_sort_agrees(logits: Tensor) -> None:
    """The batched sort finds the same nuclei, but for what float32 loses in a sum over the vocabulary."""
    few = logits[:DISTINCT_ROWS]
    _, _, size = batched_sort(few, THRESHOLD, WIDTH)
    right = perinucleus(few.cpu(), THRESHOLD, WIDTH, backend="reference").nucleus_size
    assert ((size.cpu() - right).abs() <= right // 100).all()


@pytest.fixture
def single() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.usefixtures("single")
@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("sampler", [PUBLISHED, SORT, "torch", "native"])
def bench_perinucleus(benchmark: Any, sampler: str, kind: str) -> None:
    if sampler not in samplers("cpu"):
        pytest.skip(backends.availability(sampler).detail)
    logits = make_batch(kind, MAIN_ROWS, MAIN_VOCABULARY, torch.float32, "cpu")
    if sampler == SORT:
        assert_sort_agrees(logits)
    elif sampler != PUBLISHED:
        assert_agrees(logits, sampler)
    benchmark.extra_info.update(rows=MAIN_ROWS, vocab=logits.shape[1], logits=kind)
    benchmark(samplers("cpu")[sampler], logits)


def rows_timed(name: str, rows: int, device: str) -> int:
    """Of a batch of so many, how many rows this side is timed on."""
    most = rows if device == "cuda" or name in WHOLE_ON_CPU else MOST_ROWS_ON_CPU
    return min(rows, most, MOST_ROWS.get(name, rows))


def measure(logits: Tensor, rounds: int, device: str, threads: int) -> dict[str, dict[str, float]]:
    """Seconds of a row of each side: median and minimum, measured in turn."""
    rows = len(logits)
    # Short calls are repeated: one alone would mostly measure what the side before it left in the caches.
    repeats = {
        name: REPEATS if device == "cpu" and rows <= MAIN_ROWS and name != PUBLISHED else 1 for name in samplers(device)
    }

    def side(name: str, sample: Sampler) -> Callable[[], None]:
        given = logits[: rows_timed(name, rows, device)]

        def call() -> None:
            for _ in range(repeats[name]):
                sample(given)

        return call

    sides = {name: side(name, sample) for name, sample in samplers(device, threads).items()}
    if device == "cuda":
        times = gpu_seconds(sides, rounds)
    else:
        times = {name: [cost.wall for cost in costs] for name, costs in in_turn(sides, rounds).items()}
    found = {}
    for name, seconds in times.items():
        timed = rows_timed(name, rows, device)
        each = [one / repeats[name] / timed for one in seconds]
        found[name] = {"median": statistics.median(each), "minimum": min(each), "rows": timed}
    return found


def bytes_a_row(vocab: int, dtype: torch.dtype) -> int:
    """That must be moved: the logits once, and the results."""
    return vocab * dtype.itemsize + WIDTH * (8 + 8) + 8 + 8 + 1


def run_case(
    model: str, vocab: int, kind: str, dtype: torch.dtype, rows: int, arguments: Any, copied: float | None
) -> dict[str, Any]:
    """One batch: checked, then timed. copied: bytes a second of a copy on this GPU."""
    device = arguments.device
    logits = make_batch(kind, rows, vocab, dtype, device)
    for backend in available(device):
        assert_agrees(logits, backend)
    assert_sort_agrees(logits)
    rounds = arguments.rounds or ROUNDS[device]
    rounds = rounds if device == "cuda" or rows <= MAIN_ROWS else max(3, rounds // 3)
    seconds = measure(logits, rounds, device, arguments.threads)
    nucleus = perinucleus(logits[:DISTINCT_ROWS].cpu(), THRESHOLD, WIDTH).nucleus_size.median()
    case = {"model": model, "vocab": vocab, "rows": rows, "logits": kind, "dtype": str(dtype).removeprefix("torch.")}
    case |= {"median_nucleus": int(nucleus), "rounds": rounds, "seconds_per_row": seconds}
    if copied is not None:
        moved = bytes_a_row(vocab, dtype)
        case["share_of_copy"] = {name: moved / seconds[name]["median"] / copied for name in available(device)}
    shown = "  ".join(f"{name} {times['median'] * 1e6:.3g}" for name, times in seconds.items())
    print(f"{vocab:7} {kind:9} {case['dtype']:8} {rows:4} rows, us a row: {shown}", file=sys.stderr, flush=True)
    return case


def times_faster(case: Mapping[str, Any], name: str, than: str) -> float:
    seconds = case["seconds_per_row"]
    return float(seconds[than]["median"] / seconds[name]["median"])


def figures(cases: Sequence[Mapping[str, Any]], device: str) -> list[Figure]:
    """Of the best backend there is: over the published loop, a sort and the nearest operations; the share of a copy."""
    best, made = available(device)[0], command()
    groups: dict[tuple[int, str, str], list[Mapping[str, Any]]] = {}
    for case in cases:
        groups.setdefault((case["vocab"], case["logits"], case["dtype"]), []).append(case)
    found = []
    for (vocab, kind, dtype), group in groups.items():
        where = f"V = {vocab:,}, {kind} logits, {dtype}"
        for case in group:
            a_row = f"{case['seconds_per_row'][best]['median'] * 1e6:.3g} us a row"
            if case["rows"] == MAIN_ROWS:
                bar = CPU_BARS[kind] if device == "cpu" and vocab == MAIN_VOCABULARY else None
                ratio = at_least(times_faster(case, best, PUBLISHED), bar)
                title = "perinucleus, times faster than the published loop over rows"
                found.append(Figure(title, f"{where}, {MAIN_ROWS} rows, {a_row}", *ratio, made))
            if case["rows"] == SHARE_ROWS and "share_of_copy" in case:
                share, barred = case["share_of_copy"][best], vocab == MAIN_VOCABULARY
                value = f"{share:.0%}", f">= {SHARE_BAR:.0%}" if barred else "", share >= SHARE_BAR if barred else None
                title = "perinucleus, bytes over time as a share of a copy's"
                found.append(Figure(title, f"{where}, {SHARE_ROWS} rows, {a_row}", *value, made))
        for than in group[0]["seconds_per_row"]:
            if than in (*available(device), PUBLISHED) or (than != SORT and vocab != MAIN_VOCABULARY):
                continue
            slowest = min(group, key=lambda case: times_faster(case, best, than))
            bar = SORT_BAR if device == "cuda" and than == SORT else None
            ratio = at_least(times_faster(slowest, best, than), bar)
            other = "a batched sort" if than == SORT else f"{than} (nearest operation)"
            sizes = ", ".join(f"{case['rows']:,}" for case in group)
            setting = f"{where}, batches of {sizes}; least at {slowest['rows']:,}"
            found.append(Figure(f"perinucleus, times faster than {other}", setting, *ratio, made))
    return found


def vocabulary(text: str) -> tuple[str, int]:
    """A model's name, or a number of tokens: its name and its size."""
    if text in VOCABULARIES:
        return text, VOCABULARIES[text]
    size = int(text.replace(",", "").replace("_", ""))
    return next((name for name, vocab in VOCABULARIES.items() if vocab == size), text), size


def main() -> None:
    options = parser(__doc__, "perinucleus")
    options.add_argument("--rounds", type=int, help=f"measurements of each side (default: {ROUNDS})")
    options.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES, metavar="B", help="rows")
    options.add_argument(
        "--vocabularies",
        type=vocabulary,
        nargs="+",
        default=list(VOCABULARIES.items()),
        metavar="V",
        help=f"numbers of tokens, or one of {', '.join(VOCABULARIES)}",
    )
    arguments = parse(options, "perinucleus")
    torch.set_num_threads(arguments.threads)
    run = described(arguments.threads, arguments.device)
    details: dict[str, Any] = {"absent": absent(arguments.device)}
    for name, reason in details["absent"].items():
        print(f"skipped: {name}: {reason}", file=sys.stderr)
    copied = None
    if arguments.device == "cuda":
        copied, most = copy_bandwidth()
        details["copy_bytes_per_second"] = {"median": copied, "most": most}
    details["cases"] = [
        run_case(model, vocab, kind, dtype, rows, arguments, copied)
        for model, vocab in arguments.vocabularies
        for kind in LOGITS
        for dtype in DTYPES
        for rows in arguments.batch_sizes
    ]
    finish(arguments.out, run, figures(details["cases"], arguments.device), details)


if __name__ == "__main__":
    main()
