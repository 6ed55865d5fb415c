"""Where a measurement computes: the option --device, and time, memory and bandwidth of a GPU.

A call on a GPU is timed by events of its stream. Before each, other data is read: its own is then not in the L2 cache,
and the GPU is busy while the call is launched, so that Python's share of it is not measured.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import allocations
import torch
from common import RESULTS, describe_run, in_turn, least

from oml_fast import backends

_READ_BETWEEN = 2**28  # float32 numbers, 1 GiB: some twenty times an L2 cache, and a third of a millisecond
_COPIED = 2**30  # bytes

Call = Callable[[], Any]


def parse(options: argparse.ArgumentParser, result: str) -> argparse.Namespace:
    """The arguments, --device among them. What a GPU gives goes into a file of its own: RESULT_cuda.json."""
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it computes (default: cpu)")
    arguments = options.parse_args()
    if arguments.device == "cuda":
        need_gpu()
        if arguments.out == options.get_default("out"):
            arguments.out = RESULTS / f"{result}_cuda.json"
    return arguments


def need_gpu() -> None:
    """Ends the program with exit status 1 where there is no GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device is here: this needs a machine with an NVIDIA GPU, and torch built for it.")


def described(threads: int, device: str) -> dict[str, Any]:
    """`describe_run`, with the GPU where it computes on one."""
    run = describe_run(threads)
    if device == "cuda":
        run |= {
            "device": torch.cuda.get_device_name(),
            "capability": ".".join(map(str, torch.cuda.get_device_capability())),
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "cuda_kernels": backends.availability("cuda_kernels").detail,
            "triton": backends.availability("triton").detail,
        }
    return run


def _driver() -> str:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.partition("\n")[0].strip()


def gpu_seconds(sides: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side's calls on the GPU, measured in turn, after two calls of each that warm up."""
    read_between = torch.ones(_READ_BETWEEN, device="cuda")
    for call in sides.values():
        call()
        call()
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            read_between.sum()
            before.record()
            call()
            after.record()
            events[name].append((before, after))
        torch.cuda.synchronize()
    return {name: [before.elapsed_time(after) / 1000 for before, after in pairs] for name, pairs in events.items()}


def fewest_seconds(
    sides: Mapping[str, Call], rounds: int, device: str, clock: Literal["cpu", "wall"]
) -> dict[str, float]:
    """The least seconds of each side, measured in turn: of the GPU, or by `clock` on a CPU."""
    if device == "cuda":
        return {name: min(seconds) for name, seconds in gpu_seconds(sides, rounds).items()}
    return {name: getattr(least(costs), clock) for name, costs in in_turn(sides, rounds).items()}


def copy_bandwidth(rounds: int = 20) -> tuple[float, float]:
    """Bytes a second, read and written, of a copy of 1 GiB on the GPU: the median, and the most."""
    source = torch.ones(_COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    found = sorted(gpu_seconds({"copy": lambda: target.copy_(source)}, rounds)["copy"])
    return 2 * _COPIED / found[len(found) // 2], 2 * _COPIED / found[0]


def peak_bytes(call: Call, device: str, uncounted: Collection[int] = ()) -> int:
    """The most bytes at any time of `call` beyond those before it.

    On a CPU without tensors of `uncounted` sizes; on a GPU with them, since its allocator keeps no account of each.
    """
    if device == "cpu":
        return allocations.peak_bytes(call, uncounted)
    call()  # what libraries keep from their first call on is there before
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
