"""Processes that draw keys at the same time, or are killed while they do. A script, for it forks: it has no threads.

    drawing.py draw PLACE          PROCESSES draw the keys of `bare_set(DRAWN)` until none is left
    drawing.py kill PLACE SEED     victims, one after another, draw from `bare_set(KILLED)` and are killed
    drawing.py create FOLDER SEED  MAKERS, one after another, make a registry in the folder and are killed

Each prints one line of JSON: what every process said before its end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

from sqlalchemy import Engine, event

from oml_fast.errors import InvalidArgumentError
from oml_fast.fingerprint import Fingerprint, FingerprintSet, Settings
from oml_fast.registry import Registry

PROCESSES = 8
DRAWN = 10_000
KILLED = 2_000
POINTS = 24  # victims that kill themselves before the first, second, ... statement or commit: two takes are among them
RANDOM = 8  # victims that are killed from outside, at random
TAKES = 20  # of a victim, at most
MAKERS = 8
COUNTS = (1, 3, 10, 30, 100)  # how many keys are taken at once, in turn
SMALL_COUNTS = COUNTS[:3]


class BareSet(FingerprintSet):
    """Has numbers and a digest that costs nothing, which is all that a registry looks at."""

    def digest(self) -> str:
        return hashlib.sha256(str(len(self)).encode()).hexdigest()


def bare_set(count: int) -> FingerprintSet:
    fingerprints = tuple(Fingerprint(number, f"key {number}", (number, 1), None, {}) for number in range(count))
    return BareSet(Settings(), "base", "cd" * 32, "ab" * 32, "ef" * 32, fingerprints)


def draw_all(place: str) -> None:
    context, fingerprints = multiprocessing.get_context("fork"), bare_set(DRAWN)
    ready, said = context.Barrier(PROCESSES), context.SimpleQueue()
    arguments = [(place, fingerprints, f"suspect {worker}", ready, said.put) for worker in range(PROCESSES)]
    workers = [context.Process(target=_draw, args=each) for each in arguments]
    for worker in workers:
        worker.start()
    print(json.dumps(dict(said.get() for _ in workers)))
    for worker in workers:
        worker.join()


def _draw(
    place: str, fingerprints: FingerprintSet, suspect: str, ready: Barrier, say: Callable[[object], None]
) -> None:
    drawn: list[int] = []
    with Registry(place) as registry:
        attempt = registry.attempt(fingerprints, suspect=suspect)
        ready.wait(timeout=60)
        with contextlib.suppress(InvalidArgumentError):  # the others were so quick that it got none at all
            for turn in range(DRAWN):
                taken = attempt.take(COUNTS[turn % len(COUNTS)])
                drawn += taken
                if not taken:
                    break
    say((attempt.id, drawn))


def kill_while_drawing(place: str, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    fingerprints = bare_set(KILLED)
    with Registry(place) as registry:
        registry.add_set(fingerprints)
    said = [_killed(lambda pipe, last=last: _draw_aloud(place, fingerprints, pipe, last)) for last in range(POINTS)]
    for _ in range(RANDOM):
        words, more = rng.randint(0, 8), rng.uniform(0, 0.01)
        said.append(_killed(lambda pipe: _draw_aloud(place, fingerprints, pipe), words, more))
    print(json.dumps([[json.loads(line) for line in lines] for lines in said]))


def _draw_aloud(place: str, fingerprints: FingerprintSet, pipe: int, last: int | None = None) -> None:
    """Say the attempt, then each take after it has returned; die before statement or commit number `last`."""
    if last is not None:
        left = iter(range(last))

        def step(*_: object) -> None:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        event.listen(Engine, "before_cursor_execute", step)
        event.listen(Engine, "commit", step)
    with Registry(place) as registry:
        attempt = registry.attempt(fingerprints, suspect="them")
        os.write(pipe, json.dumps(attempt.id).encode() + b"\n")
        for turn in range(TAKES):
            os.write(pipe, json.dumps(attempt.take(SMALL_COUNTS[turn % 3])).encode() + b"\n")
        signal.pause()


def kill_while_creating(folder: str, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    places = [str(Path(folder) / f"{number}.sqlite") for number in range(MAKERS)]
    for place in places:
        _killed(lambda _, place=place: Registry(place).close(), 0, rng.uniform(0, 0.1))
    print(json.dumps(places))


def _killed(victim: Callable[[int], None], words: int | None = None, more: float = 0.0) -> list[str]:
    """Fork, kill the child `more` seconds after so many lines, and return all lines. None: it kills itself."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            victim(writer)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        lines = [pipe.readline() for _ in range(words or 0)]
        if words is not None:
            time.sleep(more)
            os.kill(child, signal.SIGKILL)
        lines += pipe.readlines()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (-signal.SIGKILL, *([1] * (words == 0)))
    return lines


if __name__ == "__main__":
    commands: dict[str, Callable[..., None]] = {
        "draw": draw_all,
        "kill": lambda place, seed: kill_while_drawing(place, int(seed)),
        "create": lambda folder, seed: kill_while_creating(folder, int(seed)),
    }
    commands[sys.argv[1]](*sys.argv[2:])
