"""Peak memory of a call as torch's allocator sees it: the same from run to run, however busy the machine is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], Any], uncounted: Collection[int] = ()) -> int:
    """The most bytes on the CPU at any time of `call` beyond those before it.

    uncounted: sizes of tensors that are left out, once for each time that one is named: the gradients that every side
    has to return.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    results = profiled.profiler.kineto_results  # type: ignore[union-attr]
    events = [event for event in results.events() if event.name() == "[memory]"]
    left, out = Counter(uncounted), Counter[int]()
    held = peak = 0
    for size in (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())):
        if size > 0 and out[size] < left[size]:
            out[size] += 1
        elif size < 0 and out[-size] > 0:
            out[-size] -= 1
        else:
            held += size
            peak = max(peak, held)
    return peak
