"""Many processes, and processes that are killed: no key twice, none lost, and every attempt can be resumed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

from drawing import DRAWN, KILLED, POINTS, PROCESSES, RANDOM, SMALL_COUNTS, bare_set
from scripts import said_by

from oml_fast.registry import Registry

SEED = "4"


def run(*arguments: str) -> Any:
    return said_by(Path(__file__).parent / "drawing.py", *arguments)


def test_eight_processes_draw_every_key_once(place: str) -> None:
    drawn: dict[str, list[int]] = run("draw", place)
    assert len(drawn) == PROCESSES
    assert sum(map(len, drawn.values())) == DRAWN
    assert set(chain(*drawn.values())) == set(range(DRAWN))
    with Registry(place) as registry:
        for attempt, numbers in drawn.items():
            assert numbers == sorted(numbers)  # each asks in the set's order
            assert list(registry.verification(attempt)[1]) == numbers
        counts = registry.key_counts(suspect="suspect 0")[0]
        assert (counts.left, counts.spent) == (0, DRAWN)
        (first,) = registry.verifications(suspect="suspect 0")
        assert counts.seen == first.keys


def test_killed_at_any_point_nothing_is_lost_or_given_twice(place: str) -> None:
    said = run("kill", place, SEED)
    assert len(said) == POINTS + RANDOM
    told = {lines[0]: list(chain(*lines[1:])) for lines in said if lines}
    assert [] in said
    assert max(map(len, said[:POINTS])) >= 2, "none drew before it killed itself: raise POINTS"
    with Registry(place) as registry:
        records = registry.verifications()
        assert set(told) <= {record.id for record in records}
        shown = {record.id: registry.verification(record.id)[1] for record in records}
        for attempt, numbers in shown.items():
            heard = told.get(attempt, [])
            assert list(numbers[: len(heard)]) == heard
            assert len(numbers) - len(heard) <= max(SMALL_COUNTS)  # at most the take that nobody heard of
        spent = list(chain(*shown.values()))
        assert sorted(spent) == list(range(len(spent)))  # in order from the first, each once
        assert registry.key_counts()[0].left == KILLED - len(spent)
        for attempt, numbers in shown.items():
            resumed = registry.attempt(bare_set(KILLED), suspect="them", resume=attempt)
            assert resumed.take(len(numbers) + 1) == (*numbers, len(spent))
            spent.append(len(spent))
    if "://" not in place:
        with closing(sqlite3.connect(place)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def test_killed_while_it_is_made_a_registry_is_whole_or_not_there(tmp_path: Path) -> None:
    places = [Path(place) for place in run("create", str(tmp_path), SEED)]
    for place in places:
        with Registry(place) as registry:
            assert registry.sets() == ()
