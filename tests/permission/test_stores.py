"""Stores: each nonce once, no quota passed, nothing forgotten too early, whatever restarts."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from granting import BODY, NOW, opened

from oml_fast.errors import InvalidArgumentError, KeyListError, QuotaExceeded, ReplayedNonce, StoreUnavailableError
from oml_fast.permission import SKEW, Amount, Earlier, Limits, MemoryStore, Nonce, SqliteStore, Store, Usage
from oml_fast.permission import sqlite as sqlite_room
from oml_fast.registry import PermissionStore

FORGET = NOW + 1000
LIMITS = Limits(requests=100, output_tokens=1000)


def nonce(name: str = "a", issuer: str = "Acme", issued_at: int = NOW, forget_at: int = FORGET) -> Nonce:
    return Nonce(issuer, name, issued_at, forget_at)


def spend(store: Store, name: str = "a", body: str | None = None, now: float = NOW, **given: Any) -> Earlier | None:
    return store.spend(nonce(name, **given), body, now, 10.0)


def test_a_nonce_is_spent_once(store: Store) -> None:
    assert spend(store) is None
    for now in (NOW, NOW + 5, NOW + 500):
        with pytest.raises(ReplayedNonce, match="is spent"):
            spend(store, now=now)
    assert spend(store, issuer="Other") is None
    assert spend(store, "b") is None
    assert store.usage(nonce()) == Usage(True, Amount())
    assert store.usage(nonce("c")) == Usage(False, Amount())


def test_a_retry_is_the_same_body_a_moment_later(store: Store) -> None:
    assert spend(store, body=BODY) is None
    assert spend(store, body=BODY, now=NOW + 10) == Earlier("started")
    store.finish(nonce(), b"answer", NOW + 1)
    assert spend(store, body=BODY, now=NOW + 2) == Earlier("finished", b"answer")
    for body, now in ((BODY, NOW + 10.01), (BODY, NOW - 1), ("ef" * 32, NOW + 1), (None, NOW + 1)):
        with pytest.raises(ReplayedNonce):
            spend(store, body=body, now=now)
    store.clean_up(NOW + 20, NOW + 10)
    assert spend(store, body=BODY, now=NOW + 2) == Earlier("finished")  # the answer is gone, the nonce is not


def test_a_retry_without_a_body_is_a_replay(store: Store) -> None:
    assert spend(store) is None
    with pytest.raises(ReplayedNonce):
        spend(store, body=None)
    store.finish(nonce("never seen"), b"x", NOW)
    assert spend(store, "never seen") is None


def test_a_quota_is_leased_in_blocks_and_never_passed(store: Store) -> None:
    first = store.lease(nonce(), LIMITS, Amount(1, 10), NOW)
    assert first == Amount(12, 125)
    taken = first
    while taken.requests < 100 and taken.output_tokens <= 990:
        taken += store.lease(nonce(), LIMITS, Amount(1, 10), NOW)
    assert taken.requests <= 100
    assert taken.output_tokens <= 1000
    with pytest.raises(QuotaExceeded):
        store.lease(nonce(), LIMITS, Amount(101, 0), NOW)
    assert store.usage(nonce()).taken == taken
    store.give_back(nonce(), Amount(50, 500))
    assert store.usage(nonce()).taken == taken - Amount(50, 500)
    store.give_back(nonce(), Amount(0, -7))
    assert store.usage(nonce()).taken == taken - Amount(50, 493)
    store.give_back(nonce(), Amount(10**6, 10**6))
    assert store.usage(nonce()).taken == Amount()
    store.give_back(nonce("never leased"), Amount(1, 1))
    assert store.usage(nonce("never leased")).taken == Amount()


def test_a_lease_that_is_refused_takes_nothing(store: Store) -> None:
    with pytest.raises(QuotaExceeded, match="needs 1001 output tokens, and 1000 of 1000 are left"):
        store.lease(nonce(), LIMITS, Amount(1, 1001), NOW)
    assert store.usage(nonce()).taken == Amount()
    assert store.lease(nonce(), Limits(requests=3), Amount(3, 0), NOW) == Amount(3, 0)
    with pytest.raises(QuotaExceeded):
        store.lease(nonce(), Limits(requests=3), Amount(1, 0), NOW)
    assert store.lease(nonce("large"), Limits(output_tokens=2**53 - 1), Amount(0, 2**52), NOW) == Amount(0, 2**52)


def test_what_was_issued_before_the_store_is_unknown(store: Store) -> None:
    began = NOW - 500 + SKEW
    for use in (
        lambda each: store.spend(each, None, NOW, 10.0),
        lambda each: store.lease(each, LIMITS, Amount(1, 1), NOW),
        lambda each: store.usage(each),
    ):
        with pytest.raises(ReplayedNonce, match="before this server began"):
            use(nonce(issued_at=began))
    assert spend(store, issued_at=began + 1) is None


def test_forgetting_lets_nothing_through(store: Store) -> None:
    """Whatever the clock says at the clean-up: what may have been forgotten is refused from then on."""
    assert spend(store, "old") is None
    assert spend(store, "new", forget_at=FORGET + 10) is None
    store.lease(nonce("quota"), LIMITS, Amount(1, 1), NOW)
    store.clean_up(FORGET - 1, 0)
    with pytest.raises(ReplayedNonce, match="is spent"):
        spend(store, "old")
    store.clean_up(FORGET, 0)
    for refused in ("old", "never seen"):
        with pytest.raises(ReplayedNonce, match="forgotten"):
            spend(store, refused)
    with pytest.raises(ReplayedNonce, match="forgotten"):
        store.lease(nonce("quota"), LIMITS, Amount(1, 1), NOW)
    with pytest.raises(ReplayedNonce, match="is spent"):
        spend(store, "new", forget_at=FORGET + 10)
    store.clean_up(FORGET + 10**9, 0)  # a clock that is far ahead forgets, and refuses no more than it forgot
    with pytest.raises(ReplayedNonce, match="forgotten"):
        spend(store, "new", forget_at=FORGET + 10)
    assert spend(store, "later", forget_at=FORGET + 11) is None


def test_older_lists_are_remembered(store: Store) -> None:
    store.remember_list("owner", 3, "three")
    store.remember_list("owner", 3, "three")
    store.remember_list("other", 1, "one")
    with pytest.raises(KeyListError, match="two different lists of keys have version 3"):
        store.remember_list("owner", 3, "forged")
    store.remember_list("owner", 5, "five")
    with pytest.raises(KeyListError, match="version 3, and version 5 was seen"):
        store.remember_list("owner", 3, "three")
    store.remember_list("owner", 6, "six")


def test_what_is_kept_outlives_the_process(place: str) -> None:
    with closing(opened(place)) as store:
        assert spend(store, body=BODY) is None
        store.finish(nonce(), b"answer", NOW)
        store.lease(nonce("q"), LIMITS, Amount(100, 1), NOW)
        store.remember_list("owner", 3, "three")
    with closing(opened(place, now=NOW + 400)) as store:
        assert spend(store, body=BODY, now=NOW + 1) == Earlier("finished", b"answer")
        with pytest.raises(QuotaExceeded):
            store.lease(nonce("q"), LIMITS, Amount(1, 1), NOW)
        with pytest.raises(KeyListError):
            store.remember_list("owner", 2, "two")
        assert spend(store, "issued before the restart") is None


def run(*arguments: str) -> Any:
    command = [sys.executable, "-W", "error", Path(__file__).parent / "racing.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_eight_processes_race_for_every_nonce(place: str) -> None:
    won: list[list[int]] = run("spend", place)
    assert len(won) == 8
    assert sorted(number for each in won for number in each) == list(range(400))


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
    won = run("spend", str(tmp_path / "new"))
    assert sorted(number for each in won for number in each) == list(range(400))


def test_a_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder/store"
    with closing(SqliteStore(path, now=NOW)) as store:
        assert store.name == f"SQLite {path}"
        spend(store, issued_at=NOW + 100)
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    path.chmod(0o644)
    with pytest.raises(InvalidArgumentError, match="chmod 600"):
        SqliteStore(path)


@pytest.mark.parametrize("path", ["", ":memory:", "."])
def test_no_place_for_a_store(path: str) -> None:
    with pytest.raises(InvalidArgumentError, match="no place"):
        SqliteStore(path)


def test_a_store_in_a_folder_or_in_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="is no file"):
        SqliteStore(tmp_path)
    (tmp_path / "text").write_text("this is no database, and long enough to show it " * 20)
    (tmp_path / "text").chmod(0o600)
    with pytest.raises(StoreUnavailableError, match="not a database"):
        SqliteStore(tmp_path / "text")
    with pytest.raises(StoreUnavailableError, match="cannot open"):
        SqliteStore(tmp_path / "text/below")


def test_another_boot_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits of another boot may be lost with NORMAL, so that nothing of it is believed; with FULL they are not."""
    boot = tmp_path / "boot"
    monkeypatch.setattr(sqlite_room, "_BOOT", boot)
    for durable in (False, True):
        path = tmp_path / f"store {durable}"
        boot.write_text("first\n")
        with closing(SqliteStore(path, durable=durable, now=NOW - 500)) as store:
            assert spend(store) is None
            pace = store._connection.execute("PRAGMA synchronous").fetchone()
            assert pace == ((2 if durable else 1),)
        with closing(SqliteStore(path, durable=durable, now=NOW + 50)) as store:
            assert spend(store, "b") is None
        boot.write_text("second\n")
        with closing(SqliteStore(path, durable=durable, now=NOW + 100)) as store:
            with pytest.raises(ReplayedNonce):
                spend(store)
            if durable:
                assert spend(store, "c") is None
            else:
                with pytest.raises(ReplayedNonce, match="before this server began"):
                    spend(store, "c", issued_at=NOW + 100 + SKEW)
                assert spend(store, "c", issued_at=NOW + 101 + SKEW) is None


def test_a_file_that_was_durable_is_not_believed_after_it_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = tmp_path / "boot"
    monkeypatch.setattr(sqlite_room, "_BOOT", boot)
    boot.write_text("first")
    SqliteStore(tmp_path / "store", durable=True, now=NOW - 500).close()
    SqliteStore(tmp_path / "store", now=NOW - 500).close()
    boot.write_text("second")
    with closing(SqliteStore(tmp_path / "store", durable=True, now=NOW + 1)) as store, pytest.raises(ReplayedNonce):
        spend(store)


def test_a_file_that_is_replaced_or_gone_is_no_store(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with closing(SqliteStore(path, now=NOW - 500)) as store:
        assert spend(store) is None
        path.rename(tmp_path / "elsewhere")
        with pytest.raises(StoreUnavailableError, match="removed or replaced"):
            spend(store, "b")
        with closing(SqliteStore(path, now=NOW)) as new, pytest.raises(ReplayedNonce):
            spend(new)  # the new file does not know, and so does not accept
        with pytest.raises(StoreUnavailableError, match="removed or replaced"):
            spend(store, "b")


def test_a_file_that_is_locked_or_full_permits_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_room, "BUSY_SECONDS", 0.05)
    path = tmp_path / "store"
    with closing(SqliteStore(path, now=NOW - 500)) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailableError, match="locked"):
                spend(store)
            other.execute("ROLLBACK")
        (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        names = [f"{i}" + "x" * 2000 for i in range(20)]
        accepted = []
        with contextlib.suppress(StoreUnavailableError):
            for name in names:
                assert spend(store, name) is None
                accepted.append(name)
        with pytest.raises(StoreUnavailableError, match="full"):
            spend(store, names[len(accepted)])
        store._connection.execute("PRAGMA max_page_count = 100000")
        for name in accepted:
            with pytest.raises(ReplayedNonce):
                spend(store, name)
        assert spend(store, names[len(accepted)]) is None
    with pytest.raises(StoreUnavailableError):
        spend(store)


def test_a_store_of_another_format(tmp_path: Path) -> None:
    path = tmp_path / "store"
    SqliteStore(path).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE state SET format = 9")
    with pytest.raises(InvalidArgumentError, match="format 9"):
        SqliteStore(path)


def test_a_store_after_a_fork(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "store", now=NOW - 500)) as store:
        assert spend(store) is None
        child = os.fork()
        if child == 0:
            status = 1
            try:
                spend(store, "child")
                spend(store)
            except ReplayedNonce:
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pytest.raises(ReplayedNonce):
            spend(store, "child")


def test_a_registry_that_is_not_there_or_gone() -> None:
    with pytest.raises(StoreUnavailableError, match="cannot be used"):
        PermissionStore("postgresql://me:hush@127.0.0.1:1/registry?connect_timeout=1")
    with pytest.raises(InvalidArgumentError, match="no registry"):
        PermissionStore("no/such/file")


@pytest.mark.postgres
def test_a_server_that_goes_away_permits_nothing(postgres_url: str) -> None:
    import psycopg

    from oml_fast.registry import upgrade

    upgrade(postgres_url)
    name = postgres_url.rpartition("/")[2]
    with closing(PermissionStore(postgres_url, now=NOW - 500)) as store:
        assert spend(store) is None
        with psycopg.connect(f"{postgres_url.rpartition('/')[0]}/postgres", autocommit=True) as server:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
        with pytest.raises(StoreUnavailableError) as caught:
            spend(store, "b")
        assert str(caught.value).count("\n") == 0
        assert "hush" not in str(caught.value)


def test_the_memory_refuses_what_was_issued_before_it_started() -> None:
    store = MemoryStore(now=NOW)
    with pytest.raises(ReplayedNonce):
        spend(store, issued_at=NOW - 1)
    with pytest.raises(ReplayedNonce):  # by a clock that is half a minute ahead
        spend(store, issued_at=NOW + SKEW)
    assert spend(store, issued_at=NOW + SKEW + 1) is None
