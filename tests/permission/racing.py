"""Processes that spend the same nonces, lease the same quota, or are killed. A script, for it forks: it has no threads.

    racing.py spend PLACE   PROCESSES try to spend NONCES nonces, each in an order of its own
    racing.py lease PLACE   PROCESSES lease, use and give back one quota until it is used up
    racing.py kill PLACE    VICTIMS, one after another, spend nonces and are killed

Each prints one line of JSON: what every process had, or said before its end.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.synchronize import Barrier

from granting import NOW, opened

from oml_fast.errors import QuotaExceeded, ReplayedNonce
from oml_fast.permission import Amount, Limits, Nonce

PROCESSES = 8
NONCES = 400
VICTIMS = 12
LIMITS = Limits(requests=1000, output_tokens=20_000)


def race(place: str, what: Callable[[str, int, Barrier], list[int]]) -> None:
    context = multiprocessing.get_context("fork")
    ready, said = context.Barrier(PROCESSES), context.SimpleQueue()
    workers = [
        context.Process(target=lambda number=number: said.put(what(place, number, ready)))
        for number in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    print(json.dumps([said.get() for _ in workers]))
    for worker in workers:
        worker.join()


def spend(place: str, worker: int, ready: Barrier) -> list[int]:
    order = random.Random(worker).sample(range(NONCES), NONCES)  # noqa: S311
    won = []
    ready.wait(timeout=60)
    with closing(opened(place, now=NOW - 500)) as store:
        for number in order:
            try:
                store.spend(Nonce("Acme", str(number), NOW, NOW + 1000), None, NOW, 10.0)
                won.append(number)
            except ReplayedNonce:
                continue
    return won


def lease(place: str, worker: int, ready: Barrier) -> list[int]:
    """How many requests and token ids it used: each lease is used in part, and the rest is given back."""
    rng, used, nonce = random.Random(worker), Amount(), Nonce("Acme", "quota", NOW, NOW + 1000)  # noqa: S311
    ready.wait(timeout=60)
    with closing(opened(place)) as store:
        while True:
            need = Amount(1, rng.randint(1, 30))
            try:
                had = store.lease(nonce, LIMITS, need, NOW)
            except QuotaExceeded:
                break
            took = Amount(rng.randint(1, had.requests), rng.randint(1, had.output_tokens))
            store.give_back(nonce, had - took)
            used += took
    return [used.requests, used.output_tokens]


def kill(place: str) -> None:
    rng = random.Random(7)  # noqa: S311
    said = []
    for victim in range(VICTIMS):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                with closing(opened(place)) as store:
                    for number in range(1000):
                        store.spend(Nonce("Acme", f"{victim} {number}", NOW, NOW + 1000), None, NOW, 10.0)
                        os.write(writer, f"{number}\n".encode())
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            lines = [pipe.readline() for _ in range(rng.randint(1, 6))]
            time.sleep(rng.uniform(0, 0.003))
            os.kill(child, signal.SIGKILL)
            lines += pipe.readlines()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (-signal.SIGKILL, 1)
        said.append([int(line) for line in lines])
    print(json.dumps(said))


if __name__ == "__main__":
    if sys.argv[1] == "kill":
        kill(sys.argv[2])
    else:
        race(sys.argv[2], {"spend": spend, "lease": lease}[sys.argv[1]])
