"""The store in a file: who may read it, another boot, a full disk, a fork."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path

import pytest
from granting import FORGET, NOW, QUOTA, nonce, spend

from oml_fast.errors import InvalidArgumentError, ReplayedNonce, StoreUnavailableError
from oml_fast.permission import SKEW, Amount, SqliteStore
from oml_fast.permission import sqlite as sqlite_room


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


def test_a_file_that_becomes_durable_is_not_believed_for_what_was_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = tmp_path / "boot"
    monkeypatch.setattr(sqlite_room, "_BOOT", boot)
    boot.write_text("first")
    SqliteStore(tmp_path / "store", now=NOW - 500).close()
    SqliteStore(tmp_path / "store", durable=True, now=NOW - 500).close()
    boot.write_text("second")
    for _ in range(2):  # and from then on it is
        with closing(SqliteStore(tmp_path / "store", durable=True, now=NOW)) as store:
            with pytest.raises(ReplayedNonce, match="began"):
                spend(store, issued_at=NOW + SKEW)
            boot.write_text("third")


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


def test_a_machine_that_cannot_name_its_boot_begins_anew_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_room, "_BOOT", tmp_path / "none")
    with closing(SqliteStore(tmp_path / "store", now=NOW - 500)) as store:
        assert spend(store) is None
    with closing(SqliteStore(tmp_path / "store", now=NOW)) as store, pytest.raises(ReplayedNonce, match="began"):
        spend(store, "b")


def test_a_clock_that_was_set_back_moves_no_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_room, "_BOOT", tmp_path / "none")
    SqliteStore(tmp_path / "store", now=NOW).close()
    with closing(SqliteStore(tmp_path / "store", now=NOW - 9000)) as store:
        with pytest.raises(ReplayedNonce, match="began"):
            spend(store, issued_at=NOW + SKEW)
        assert spend(store, issued_at=NOW + SKEW + 1) is None


def test_a_clean_up_is_short_and_leaves_nothing_of_what_it_forgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_room, "FORGET_AT_ONCE", 2)
    answer = b"an answer that nobody else may read " * 9
    with closing(SqliteStore(tmp_path / "store", now=NOW - 500)) as store:
        for number in (4, 1, 3, 2, 0):
            assert spend(store, str(number), forget_at=FORGET + number) is None
        store.finish(nonce("0"), answer, NOW)
        store.lease(nonce("quota"), QUOTA, Amount(1, 1), NOW)
        assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)

        def left(table: str) -> int:
            return int(store._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608

        for nonces, last in ((3, 1), (1, 3), (0, 4)):
            store.clean_up(FORGET + 99, NOW + 1)
            assert (left("nonces"), left("quotas"), left("answers")) == (nonces, 0, 0)
            with pytest.raises(ReplayedNonce, match="forgotten"):
                spend(store, "new", forget_at=FORGET + last)
            for number in range(last + 1, 5):
                with pytest.raises(ReplayedNonce, match="is spent"):
                    spend(store, str(number), forget_at=FORGET + number)
    assert answer[:36] not in (tmp_path / "store").read_bytes()


def test_a_place_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    SqliteStore("~/a/store").close()
    assert (tmp_path / "a/store").is_file()


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601])
def test_a_store_that_others_may_use_in_any_way_is_refused(mode: int, tmp_path: Path) -> None:
    SqliteStore(tmp_path / "store").close()
    (tmp_path / "store").chmod(mode)
    with pytest.raises(InvalidArgumentError, match=f"mode {mode:04o}"):
        SqliteStore(tmp_path / "store")


def test_waiting_for_a_lock_that_is_soon_free(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "store", now=NOW - 500)) as store:
        other = sqlite3.connect(tmp_path / "store", isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.2, lambda: other.execute("ROLLBACK"))
        release.start()
        assert spend(store) is None
        release.join()
        other.close()


def test_a_child_leaves_its_parent_s_connection_alone(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "store", now=NOW - 500)) as store:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                spend(store, "child")
                spend(store, "child's second")
                pace = store._connection.execute("PRAGMA synchronous").fetchone()
                status = 0 if len(store._left_to_parents) == 1 and pace == (1,) else 1
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert store._left_to_parents == []


def test_a_file_is_written_with_care(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its beginning waits for the disk, and what is deleted is overwritten."""
    monkeypatch.setattr(sqlite_room, "_set_pace", lambda *_: None)
    with closing(SqliteStore(tmp_path / "store", now=NOW)) as store:
        asked = [store._connection.execute(f"PRAGMA {name}").fetchone() for name in ("synchronous", "secure_delete")]
    assert asked == [(2,), (1,)]
