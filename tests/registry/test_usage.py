"""Usage: what is added is summed, nothing is lost between processes, and what fails has added nothing."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import astuple, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from metering import ADDED, ADDS, MODELS, NOON, PROCESSES, VICTIMS
from scripts import said_by
from sets import small_set
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import OperationalError

from oml_fast.errors import BackendUnavailableError, InvalidArgumentError, StoreUnavailableError
from oml_fast.permission import Amount, Limits, Nonce
from oml_fast.registry import PermissionStore, Registry, UsageLog, Used, schema, upgrade, usage
from oml_fast.registry.connection import make_engine, read_url

HOUR = 3600
ONE = Used("Acme", MODELS[0], 3, 6, 100, 50, 1)
TWO = Used("Bolt", MODELS[1], 1, 1, 7, 5, 0)


@pytest.fixture
def log(place: str) -> Iterator[UsageLog]:
    with closing(UsageLog(place)) as log:
        yield log


def run(*arguments: str) -> Any:
    return said_by(Path(__file__).parent / "metering.py", *arguments)


def times(count: int, used: Used) -> Used:
    licensee, model_digest, *counts = astuple(used)
    return Used(licensee, model_digest, *(count * each for each in counts))


def test_what_is_added_is_summed_by_licensee_and_model(log: UsageLog) -> None:
    assert log.total() == log.by_hour() == []
    log.add([], NOON)
    log.add([TWO, ONE], NOON)
    log.add([ONE], NOON + 59.9)
    log.add([replace(ONE, model_digest=MODELS[1])], NOON)
    assert log.total() == [times(2, ONE), replace(ONE, model_digest=MODELS[1]), TWO]


def test_one_licensee_and_model_may_come_twice_at_once(log: UsageLog) -> None:
    log.add([ONE, TWO, ONE], NOON)
    assert log.total() == [times(2, ONE), TWO]


def test_an_hour_is_that_of_the_clock_in_utc(log: UsageLog) -> None:
    for now in (NOON - 0.001, NOON, NOON + HOUR - 0.001, NOON + HOUR):
        log.add([ONE], now)
    log.add([TWO], NOON)
    assert log.by_hour() == [(NOON - HOUR, ONE), (NOON, times(2, ONE)), (NOON, TWO), (NOON + HOUR, ONE)]
    assert log.total() == [times(4, ONE), TWO]


def test_what_is_asked_for_is_shown(log: UsageLog) -> None:
    other = replace(ONE, model_digest=MODELS[1])
    for hour in range(3):
        log.add([ONE, other, TWO], NOON + hour * HOUR)
    assert log.total(licensee="Acme") == [times(3, ONE), times(3, other)]
    assert log.total(model_digest=MODELS[1]) == [times(3, other), times(3, TWO)]
    assert log.total(licensee="Acme", model_digest=MODELS[1], since=NOON + HOUR) == [times(2, other)]
    assert log.total(licensee="acme") == log.total(model_digest="ef" * 32) == []
    assert log.by_hour(licensee="Bolt", until=NOON + 2 * HOUR) == [(NOON, TWO), (NOON + HOUR, TWO)]


@pytest.mark.parametrize(("since", "until"), [(0.0, 0.0), (0.5, 0.5), (HOUR - 0.5, HOUR + 0.5)])
def test_spans_that_touch_share_no_hour_and_miss_none(log: UsageLog, since: float, until: float) -> None:
    for hour in range(4):
        log.add([ONE], NOON + hour * HOUR)
    cuts = (NOON - HOUR, NOON + since, NOON + HOUR + until, NOON + 9 * HOUR)
    parts = [log.by_hour(since=a, until=b) for a, b in pairwise(cuts)]
    assert [part for each in parts for part in each] == log.by_hour(since=cuts[0], until=cuts[-1]) == log.by_hour()
    assert log.by_hour(since=NOON + 0.5)[0] == (NOON + HOUR, ONE)


def test_large_counts_are_exact(log: UsageLog) -> None:
    most = Used("Acme", MODELS[0], *[2**48 - 1] * 5)
    for _ in range(3):
        log.add([most], NOON)
    log.add([most], NOON + HOUR)
    assert log.total() == [times(4, most)]
    assert all(type(count) is int for count in astuple(log.total()[0])[2:])


WRONG: list[dict[str, Any]] = [{"licensee": name} for name in ("", " Acme", "two\nlines", "a\0b", "x" * 201, "\ud800")]
WRONG += [{"model_digest": digest} for digest in ("", "ab", "AB" * 32, "ab" * 32 + "\n")]
WRONG += [{name: count} for name in usage.COUNTS for count in (-1, 2**48, 1.0, True, None, "1")]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: repr(wrong)[:40])
def test_what_is_no_usage_is_refused_whole(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with closing(UsageLog(tmp_path / "registry")) as log:
        with pytest.raises(InvalidArgumentError, match=next(iter(wrong)).replace("_digest", "'s digest")) as caught:
            log.add([ONE, replace(TWO, **wrong)], NOON)
        assert "\n" not in str(caught.value)
        assert log.total() == []


def test_every_licensee_that_a_permission_can_name_is_counted(log: UsageLog) -> None:
    for name in ("x" * 200, "Müller & Søn — 東京", "https://me:hush@host/v1", "a'b\"c%s:d"):
        log.add([replace(ONE, licensee=name)], NOON)
        assert log.total(licensee=name) == [replace(ONE, licensee=name)]


@pytest.mark.parametrize("now", [-1, -0.1, float("nan"), float("inf"), 253_402_300_800, 10**20])
def test_times_that_no_clock_shows_are_refused(log: UsageLog, now: float) -> None:
    with pytest.raises(InvalidArgumentError, match="since 1970"):
        log.add([ONE], now)
    for name in ("since", "until"):
        with pytest.raises(InvalidArgumentError, match=f"{name} cannot be"):
            log.total(**{name: now})
    assert log.total() == []


def test_what_can_be_no_question_is_refused(log: UsageLog) -> None:
    with pytest.raises(InvalidArgumentError, match="a model's digest cannot be 'ab'"):
        log.total(model_digest="ab")
    for since in (NOON, NOON + 1):
        with pytest.raises(InvalidArgumentError, match="give a later until"):
            log.by_hour(since=since, until=NOON)


def test_eight_processes_lose_nothing(place: str) -> None:
    assert run("add", place) == [0] * PROCESSES
    with closing(UsageLog(place)) as log:
        assert log.total() == [times(PROCESSES * ADDS, used) for used in ADDED]
        assert {hour for hour, _ in log.by_hour()} == {NOON, NOON + HOUR}


def test_killed_at_any_moment_what_was_said_is_there(place: str) -> None:
    told: list[int] = run("kill", place)
    assert len(told) == VICTIMS
    with closing(UsageLog(place)) as log:
        for victim, count in enumerate(told):
            both = log.total(licensee=f"victim {victim}")
            assert [each.model_digest for each in both] == list(MODELS)
            assert both[0].requests in (count, count + 1)  # at most one that nobody heard of
            assert both == [times(both[0].requests, Used(f"victim {victim}", model, 1, 1, 7, 5)) for model in MODELS]


def contents(place: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table but the version's."""
    engine = make_engine(read_url(place))
    with engine.connect() as connection:
        names = set(inspect(connection).get_table_names()) - {"registry_version"}
        rows = {name: connection.execute(text(f"SELECT * FROM {name}")).all() for name in names}  # noqa: S608
    engine.dispose()
    return {name: sorted(map(tuple, found), key=repr) for name, found in rows.items()}


def test_a_registry_of_before_keeps_everything(
    empty_place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tmp_path / "before"
    shutil.copytree(schema.MIGRATIONS, before)
    (before / "versions/v0003_usage.py").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", before)
        assert upgrade(empty_place)[2] == "0002"
        with Registry(empty_place) as registry:
            registry.add_licensee("Acme", "by contract 7")
            registry.add_set(small_set(8), licensee="Acme")
            registry.attempt(small_set(8), suspect="them").take(3)
            registry.add_model("ef" * 32, small_set(8).digest(), "model")
        with closing(PermissionStore(empty_place, now=NOON - 500)) as store:
            store.spend(Nonce("Owner", "a", NOON, NOON + 1000), None, NOON, 10.0)
            store.lease(Nonce("Owner", "b", NOON, NOON + 1000), Limits(requests=10), Amount(1, 0), NOON)
            store.remember_list("owner", 3, "three")
    kept = contents(empty_place)
    assert all(kept.values())
    with pytest.raises(StoreUnavailableError, match=r"older oml_fast \(version 0002\): run oml-fast registry upgrade"):
        UsageLog(empty_place)
    assert contents(empty_place) == kept
    assert upgrade(empty_place)[1:] == ("0002", "0003")
    assert contents(empty_place) == {**kept, "usage": []}
    with closing(UsageLog(empty_place)) as log:
        log.add([ONE], NOON)
        assert log.total() == [ONE]


def test_a_new_file_is_a_registry(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="there is no registry at"):
        UsageLog(tmp_path / "registry", create=False)
    assert list(tmp_path.iterdir()) == []
    with closing(UsageLog(tmp_path / "registry")) as log, Registry(tmp_path / "registry") as registry:
        assert log.name == registry.name
        registry.add_licensee("Acme")
        log.add([ONE], NOON)
        assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


def test_places_that_can_be_no_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text("no database\n" * 100)
    (tmp_path / "text").chmod(0o600)
    for where, why in (("", "no place"), (tmp_path, "is no file"), (tmp_path / "text", "is no SQLite file")):
        with pytest.raises(InvalidArgumentError, match=why):
            UsageLog(where)
    (tmp_path / "text").chmod(0o644)
    with pytest.raises(InvalidArgumentError, match="chmod 600"):
        UsageLog(tmp_path / "text")
    with pytest.raises(StoreUnavailableError, match="cannot write"):
        UsageLog(tmp_path / "text" / "below")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(BackendUnavailableError, match="pip install"):
        UsageLog("postgresql://me:hush@127.0.0.1:1/registry")


def test_a_server_that_cannot_be_reached() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StoreUnavailableError, match=r"cannot be used: .*check the URL") as caught:
        UsageLog("postgresql://me:hush@127.0.0.1:1/registry?connect_timeout=1")
    assert "hush" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_locked_or_full_adds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oml_fast.registry.connection.BUSY_SECONDS", 0.05)
    path = tmp_path / "registry"
    many = [replace(ONE, licensee=f"{number} {'x' * 190}") for number in range(200)]
    with closing(UsageLog(path)) as log:
        log.add([ONE], NOON)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailableError, match=r"another process has held the registry .* try again"):
                log.add([ONE], NOON)
            assert log.total() == [ONE]  # who reads does not wait
        with log._engine.connect() as connection:
            pages = connection.scalar(text("PRAGMA page_count"))
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreUnavailableError, match=r"full\. Nothing is half-written; check that the disk"):
            log.add([ONE, *many], NOON)
        assert log.total() == [ONE]
        with log._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 100000")
        log.add([ONE, *many], NOON)
        assert len(log.total()) == 201
        assert log.total(licensee="Acme") == [times(2, ONE)]


def test_a_file_that_is_gone_or_replaced_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "registry"
    with closing(UsageLog(path)) as log:
        log.add([ONE], NOON)
        (tmp_path / "elsewhere").mkdir()
        for file in tmp_path.glob("registry*"):
            file.rename(tmp_path / "elsewhere" / file.name)
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match="removed or replaced: restart the server"):
                log.add([ONE], NOON)
            UsageLog(path).close()
        with closing(UsageLog(path)) as new:
            assert new.total() == []


@pytest.mark.postgres
def test_a_database_that_goes_away_adds_nothing(postgres_url: str) -> None:
    import psycopg

    upgrade(postgres_url)
    server, _, name = postgres_url.rpartition("/")
    with closing(UsageLog(postgres_url)) as log, psycopg.connect(f"{server}/postgres", autocommit=True) as other:
        log.add([ONE], NOON)
        mine = f"FROM pg_stat_activity WHERE datname = '{name}'"
        other.execute(f"SELECT pg_terminate_backend(pid) {mine}".encode())
        log.add([ONE], NOON)
        assert log.total() == [times(2, ONE)]
        other.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
        with pytest.raises(StoreUnavailableError, match="Nothing is half-written") as caught:
            log.add([ONE], NOON)
        assert "\n" not in str(caught.value)
        assert postgres_url.split(":")[2].split("@")[0] not in str(caught.value)


@pytest.mark.postgres
def test_a_server_that_hangs_is_not_waited_for(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg

    monkeypatch.setattr(usage, "SECONDS_TO_WAIT", 1)
    upgrade(postgres_url)
    with closing(UsageLog(postgres_url)) as log:
        log.add([ONE], NOON)
        with psycopg.connect(postgres_url) as other:
            other.execute("SELECT * FROM usage FOR UPDATE")
            with pytest.raises(StoreUnavailableError, match="statement timeout"):
                log.add([ONE, TWO], NOON)
        assert log.total() == [ONE]


@pytest.mark.postgres
@pytest.mark.parametrize("done", [True, False])
def test_a_commit_whose_answer_is_lost_is_asked_for(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    """The connection dies after the commit was done, or before: then it is added, or the error says that it is not."""
    upgrade(postgres_url)
    with closing(UsageLog(postgres_url)) as log:
        commit = log._engine.dialect.do_commit

        def answer_lost(connection: Any) -> None:
            if not lost:
                lost.append(True)
                if done:
                    commit(connection)
                connection.dbapi_connection.close()
            commit(connection)

        lost: list[bool] = []
        monkeypatch.setattr(log._engine.dialect, "do_commit", answer_lost)
        if done:
            log.add([ONE], NOON)
        else:
            with pytest.raises(StoreUnavailableError):
                log.add([ONE], NOON)
        assert lost
        assert log.total() == [ONE] * done
        log.add([ONE], NOON)
        assert log.total() == [times(1 + done, ONE)]


@pytest.mark.postgres
def test_a_commit_that_goes_on_is_waited_for(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg

    upgrade(postgres_url)
    with closing(UsageLog(postgres_url)) as log, psycopg.connect(postgres_url) as other:
        for end, committed in ((other.commit, True), (other.rollback, False)):
            (number,) = other.execute("SELECT txid_current()").fetchone() or (0,)
            monkeypatch.setattr(usage.time, "sleep", lambda _, end=end: end())
            assert log._committed(number) is committed


def test_a_commit_that_fails_has_added_nothing(log: UsageLog, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(connection: Connection) -> None:
        raise OperationalError("COMMIT", None, Exception("disk I/O error"))

    with monkeypatch.context() as patch:
        patch.setattr(log._engine.dialect, "do_commit", fails)
        if log._engine.dialect.name == "postgresql":
            patch.setattr(UsageLog, "_committed", lambda self, number: False)
        with pytest.raises(StoreUnavailableError, match="disk I/O error"):
            log.add([ONE, TWO], NOON)
    assert log.total() == []
    log.add([ONE, TWO], NOON)
    assert log.total() == [ONE, TWO]
