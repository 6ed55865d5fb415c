"""Processes that add usage at the same time, or are killed while they do. A script, for it forks: it has no threads.

    metering.py add PLACE    PROCESSES add what ADDED has, ADDS times each
    metering.py kill PLACE   VICTIMS, one after another, add one request after another and are killed

Each prints one line of JSON; `kill` prints how many additions each victim said were done.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
from collections.abc import Callable
from contextlib import closing
from multiprocessing.synchronize import Barrier

from drawing import _killed

from oml_fast.registry import UsageLog, Used

PROCESSES = 8
ADDS = 25
VICTIMS = 8
NOON = 1_795_348_800  # 2026-11-22T12:00:00Z
MODELS = ("ab" * 32, "cd" * 32)
ADDED = [Used(name, model, 1, 2, 30, 40, 1) for name in ("Acme", "Bolt", "Cog") for model in MODELS]


def add(place: str) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(PROCESSES)
    workers = [context.Process(target=_add, args=(place, worker, ready)) for worker in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(json.dumps([worker.exitcode for worker in workers]))


def _add(place: str, worker: int, ready: Barrier) -> None:
    order = random.Random(worker)  # noqa: S311
    with closing(UsageLog(place)) as log:
        ready.wait(timeout=60)
        for turn in range(ADDS):
            log.add(order.sample(ADDED, len(ADDED)), NOON + turn % 2 * 3600)


def kill(place: str) -> None:
    rng = random.Random(4)  # noqa: S311
    UsageLog(place).close()
    told = [
        _killed(lambda pipe, victim=victim: _add_aloud(place, victim, pipe), rng.randint(1, 5), rng.uniform(0, 0.01))
        for victim in range(VICTIMS)
    ]
    print(json.dumps([len(lines) for lines in told]))


def _add_aloud(place: str, victim: int, pipe: int) -> None:
    with closing(UsageLog(place)) as log:
        while True:
            log.add([Used(f"victim {victim}", model, 1, 1, 7, 5) for model in MODELS], NOON)
            os.write(pipe, b"done\n")


if __name__ == "__main__":
    commands: dict[str, Callable[[str], None]] = {"add": add, "kill": kill}
    commands[sys.argv[1]](sys.argv[2])
