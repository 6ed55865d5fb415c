"""Processes that spend the same nonces, lease the same quota, or are killed. A script, for it forks: it has no threads.

    racing.py spend PLACE NONCES   PROCESSES try to spend all nonces, each in an order of its own
    racing.py crash PLACE NONCES   the same, but some of them are killed at work, and others take their places
    racing.py lease PLACE          PROCESSES lease, use and give back one quota until it is used up
    racing.py kill PLACE           VICTIMS, one after another, spend nonces and are killed

Each prints one line of JSON: what every process had, or said before its end. All of them have ended by then: whoever
reads the output to its end has waited for the last of them.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from multiprocessing.synchronize import Barrier

from granting import NOW, opened

from oml_fast.errors import QuotaExceeded, ReplayedNonce
from oml_fast.permission import Amount, Limits, Nonce

PROCESSES = 8
VICTIMS = 12
CRASHES = (0.05, 0.2, 0.35, 0.5)  # a process is killed when so much of the nonces is spent
RECORD = 32  # bytes: a page of them is few, so that nobody is far ahead of what was told
LIMITS = Limits(requests=1000, output_tokens=20_000)


def race(place: str, what: Callable[[str, int, Barrier], list[int]]) -> None:
    context = multiprocessing.get_context("fork")
    ready, said = context.Barrier(PROCESSES), context.SimpleQueue()

    def work(number: int) -> None:
        had: list[int] = []
        try:
            had = what(place, number, ready)
        finally:
            said.put(had)  # in any case, for somebody waits; an error is printed by the process

    workers = [context.Process(target=work, args=(number,)) for number in range(PROCESSES)]
    for worker in workers:
        worker.start()
    print(json.dumps([said.get() for _ in workers]))
    for worker in workers:
        worker.join()


def spend(place: str, worker: int, ready: Barrier) -> list[int]:
    won: list[int] = []
    ready.wait(timeout=60)
    spend_all(place, int(sys.argv[3]), worker, won.append)
    return won


def spend_all(place: str, nonces: int, seed: int, won: Callable[[int], object]) -> None:
    """Try to spend all nonces, in an order of its own, and tell of each that was spent, once it is."""
    order = random.Random(seed).sample(range(nonces), nonces)  # noqa: S311
    with closing(opened(place, now=NOW - 500)) as store:
        for number in order:
            try:
                store.spend(Nonce("Acme", str(number), NOW, NOW + 1000), None, NOW, 10.0)
            except ReplayedNonce:
                continue
            won(number)


def crash(place: str, nonces: int) -> None:
    """Each process tells of a nonce as soon as it has it; those that are killed are followed by others."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)

    def begin(seed: int) -> int:
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                spend_all(place, nonces, seed, lambda number: os.write(writer, number.to_bytes(RECORD, "big")))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        return child

    children = [begin(seed) for seed in range(PROCESSES)]
    told, ended = [], []
    for share in CRASHES:
        while len(told) < share * nonces:
            told.append(int.from_bytes(os.read(reader, RECORD), "big"))
        victim = children.pop(0)
        os.kill(victim, signal.SIGKILL)
        ended.append(os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1]))
        children.append(begin(PROCESSES + len(ended)))
    os.close(writer)
    while record := os.read(reader, RECORD):
        told.append(int.from_bytes(record, "big"))
    ended += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps([told, ended]))


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
    elif sys.argv[1] == "crash":
        crash(sys.argv[2], int(sys.argv[3]))
    else:
        race(sys.argv[2], {"spend": spend, "lease": lease}[sys.argv[1]])
