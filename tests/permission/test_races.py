"""Eight processes at once, and processes that are killed: nothing is accepted twice."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from granting import TEST_ALL, nonce, opened, spend
from scripts import said_by

from oml_fast.errors import ReplayedNonce
from oml_fast.permission import Amount


def run(*arguments: str) -> Any:
    return said_by(Path(__file__).parent / "racing.py", *arguments)


def size(place: str) -> int:
    """How many nonces: a registry on SQLite, which is for trials, takes too long for the full size."""
    return 5000 if TEST_ALL and not place.endswith("registry") else 400


def require_spent(place: str, nonces: int) -> None:
    """After a restart, too: and nothing else lies where the store is."""
    with closing(opened(place)) as store:
        for number in range(nonces):
            with pytest.raises(ReplayedNonce):
                spend(store, str(number))
    if "://" not in place:
        with closing(sqlite3.connect(place)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert [path.name for path in Path(place).parent.iterdir()] == [Path(place).name]


def test_eight_processes_race_for_every_nonce(place: str) -> None:
    won: list[list[int]] = run("spend", place, str(size(place)))
    assert len(won) == 8
    assert sorted(number for each in won for number in each) == list(range(size(place)))
    require_spent(place, size(place))


def test_killed_in_the_race_and_followed_by_others_nothing_is_accepted_twice(place: str) -> None:
    """Four of eight are killed at work. What one has spent and not told of is at most the one at its end."""
    nonces = size(place) if "://" not in place else 400
    told, ended = run("crash", place, str(nonces))
    assert ended == [-signal.SIGKILL] * 4 + [0] * 8
    assert len(told) == len(set(told))
    assert nonces - 4 <= len(told) <= nonces
    require_spent(place, nonces)


def test_eight_processes_never_pass_a_quota(place: str) -> None:
    """Leases, refusals, and what is given back, all at once: what is held in the end is what is taken."""
    used: list[list[int]] = run("lease", place)
    requests, tokens = (sum(each[place] for each in used) for place in (0, 1))
    assert requests <= 1000
    assert tokens <= 20_000
    with closing(opened(place)) as store:
        assert store.usage(nonce("quota")).taken == Amount(requests, tokens)
    assert requests == 1000 or tokens > 20_000 - 30  # and it was used up


def test_killed_at_any_moment_nothing_is_accepted_again(place: str) -> None:
    """Each victim says what it was let through after `spend` returned; nobody is let through with it again."""
    told: list[list[int]] = run("kill", place)
    assert len(told) == 12
    assert sum(map(len, told)) > 20
    with closing(opened(place)) as store:
        for victim, numbers in enumerate(told):
            for number in numbers:
                with pytest.raises(ReplayedNonce):
                    spend(store, f"{victim} {number}")
            assert spend(store, f"{victim} {len(numbers) + 1}") is None  # at most one that nobody heard of
    if "://" not in place:
        with closing(sqlite3.connect(place)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_eight_processes_make_one_file(tmp_path: Path) -> None:
    won = run("spend", str(tmp_path / "new"), "400")
    assert sorted(number for each in won for number in each) == list(range(400))
