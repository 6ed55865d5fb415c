"""perinucleus on all cores against one thread: from how many rows on threads help, and that they never hurt.

`python bench/bench_perinucleus_threads.py` measures small and large batches and vocabularies, both sides in turn,
prints a table and writes bench/results/perinucleus_threads.json. `pytest bench/bench_perinucleus_threads.py` does one.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from common import Figure, at_least, command, describe_run, finish, in_turn, least, parser, start
from shapes import VOCABULARIES, make_logits

from oml_fast import backends
from oml_fast.ops import perinucleus

VOCABS = (1_500, VOCABULARIES["SmolLM2-135M"], VOCABULARIES["Llama-3.1-8B"])
ROWS = (1, 2, 3, 4, 8, 16, 64)
KINDS = ("realistic", "flat")
NEVER_HURT, HELP, HELPED_ROWS = 0.9, 1.5, 16  # times as fast; with a share of noise
CALL_SECONDS = 2e-3  # a call is repeated for about so long


def fewest(logits: torch.Tensor, threads: int, rounds: int) -> dict[int, float]:
    """Seconds of a call with one thread, and with so many, after both are seen to give the same bits."""

    def call(number: int, times: int = 1) -> Any:
        for _ in range(times):
            found = perinucleus(logits, 0.8, 16, backend="native", num_threads=number)
        return found

    assert all(torch.equal(a, b) for a, b in zip(call(1), call(threads), strict=True))
    once = least(in_turn({"once": lambda: call(1)}, 5)["once"]).wall
    times = max(1, round(CALL_SECONDS / once))
    costs = in_turn({"one": lambda: call(1, times), "all": lambda: call(threads, times)}, rounds)
    return {number: least(costs[name]).wall / times for number, name in ((1, "one"), (threads, "all"))}


@pytest.mark.skipif(not backends.availability("native").available, reason="no native code")
def bench_threads(benchmark: Any) -> None:
    logits = make_logits("realistic", 8, VOCABS[0])
    one, two = (perinucleus(logits, 0.8, 16, backend="native", num_threads=number) for number in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    benchmark(lambda: perinucleus(logits, 0.8, 16, backend="native", num_threads=2))


def main() -> None:
    options = parser(__doc__, "perinucleus_threads")
    options.set_defaults(threads=os.cpu_count())
    options.add_argument("--rounds", type=int, default=30, help="measurements of each side (default: 30)")
    arguments = options.parse_args()
    start(arguments.threads)
    run, cases, figures = describe_run(arguments.threads), [], []
    for vocab in VOCABS:
        for kind in KINDS:
            found = {}
            for rows in ROWS:
                seconds = fewest(make_logits(kind, rows, vocab), arguments.threads, arguments.rounds)
                found[rows] = seconds[1] / seconds[arguments.threads]
                cases.append({"vocab": vocab, "logits": kind, "rows": rows, "seconds": seconds})
                print(f"{vocab:7} {kind:9} {rows:4} rows: {found[rows]:.2f}x", flush=True)
            setting = f"V = {vocab:,}, {kind} logits, {arguments.threads} threads over one"
            worst = min(found, key=lambda rows: found[rows])
            title = "perinucleus on all cores, times as fast"
            value = at_least(found[worst], NEVER_HURT)
            figures.append(Figure(title, f"{setting}; the least, at {worst} rows", *value, command()))
            bar = HELP if vocab == VOCABS[-1] else None
            value = at_least(found[HELPED_ROWS], bar)
            figures.append(Figure(title, f"{setting}; {HELPED_ROWS} rows", *value, command()))
    finish(arguments.out, run, figures, {"cases": cases})


if __name__ == "__main__":
    main()
