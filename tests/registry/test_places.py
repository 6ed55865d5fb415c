"""Where a registry is, which version its tables have, and what its errors say."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sets import small_set
from sqlalchemy import make_url, text

from oml_fast.errors import BackendUnavailableError, InvalidArgumentError, OmlError
from oml_fast.registry import Registry, connection, schema, upgrade
from oml_fast.registry.tables import VERSION_TABLE, metadata

NOWHERE = "postgresql://me:hush@127.0.0.1:1/registry?connect_timeout=1"
WRONG = "nobody's"
NEXT = '''
"""A later version."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("licensees", sa.Column("extra", sa.Text))
'''


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("where", ["registry.sqlite", "new folder/50%.sqlite", "a?b#c.db"])
def test_a_new_file_is_made_for_its_owner_alone(where: str, tmp_path: Path) -> None:
    path = tmp_path / where
    with Registry(path) as registry:
        assert registry.name == str(path)
        registry.add_licensee("Acme")
        assert {mode(file) for file in path.parent.iterdir()} == {0o600}
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with Registry(f"sqlite:///{path}") if "?" not in where else Registry(path) as registry:
        assert [record.name for record in registry.licensees()] == ["Acme"]


def test_a_file_waits_for_others_and_keeps_what_it_says(tmp_path: Path) -> None:
    with Registry(tmp_path / "r") as registry, registry._reading() as connection:
        values = {name: connection.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous")}
        assert values == {"journal_mode": "wal", "synchronous": 2}
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1
        assert connection.scalar(text("PRAGMA busy_timeout")) == 30_000


WRONG_PLACES = ["", "  ", ":memory:", "sqlite://", "sqlite:///:memory:", "mysql://me:hush@host/name", "://x"]
WRONG_PLACES += ["postgresql+psycopg2://me:hush@host/name", "postgresql://me:hush@host:port/name", "http://host"]


@pytest.mark.parametrize("where", WRONG_PLACES)
def test_places_that_can_be_no_registry(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (Registry, upgrade):
        with pytest.raises(InvalidArgumentError, match="give the path of an SQLite file, or postgresql://") as caught:
            use(where)
        assert "hush" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_registry(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("no database\n" * 100)
    (tmp_path / "empty").touch()
    with closing(sqlite3.connect(tmp_path / "other")) as other:
        other.execute("CREATE TABLE mine (id INTEGER)")
    for name in ("text", "empty", "other"):
        (tmp_path / name).chmod(0o600)
    content = (tmp_path / "other").read_bytes()
    reasons = {
        "folder": "is no file",
        "text": "is no SQLite file",
        "empty": "is empty: remove it",
        "other": "of another program",
    }
    for name, why in reasons.items():
        with pytest.raises(OmlError, match=why):
            Registry(tmp_path / name)
    with pytest.raises(InvalidArgumentError, match="of another program"):
        upgrade(tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == content


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o666])
def test_a_file_that_others_can_use_is_refused(tmp_path: Path, bits: int) -> None:
    Registry(tmp_path / "r").close()
    (tmp_path / "r").chmod(bits)
    for use in (Registry, upgrade):
        with pytest.raises(InvalidArgumentError, match=rf"mode {bits:04o}\): chmod 600 "):
            use(tmp_path / "r")


def test_none_is_made_where_one_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"no registry at {tmp_path}/r: .* oml-fast registry add-set"):
        Registry(tmp_path / "r", create=False)
    assert list(tmp_path.iterdir()) == []
    Registry(tmp_path / "r").close()
    with Registry(tmp_path / "r", create=False) as registry:
        assert registry.sets() == ()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OmlError, match="cannot write"):
        Registry(tmp_path / "file" / "registry")


def test_a_file_that_another_process_made_meanwhile_is_kept(tmp_path: Path) -> None:
    with Registry(tmp_path / "r") as registry:
        registry.add_licensee("Acme")
    schema._create_file(tmp_path / "r")
    with Registry(tmp_path / "r") as registry:
        assert len(registry.licensees()) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_is_locked_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BUSY_SECONDS", 0.01)
    with Registry(tmp_path / "r") as registry, closing(sqlite3.connect(tmp_path / "r")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OmlError, match=r"another process has held the registry .* try again"):
            registry.add_licensee("Acme")


def test_the_tables_are_those_that_the_migrations_make(place: str) -> None:
    Registry(place).close()
    engine = connection.make_engine(connection.read_url(place))
    with engine.connect() as connected:
        context = MigrationContext.configure(connected, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_older_tables_want_an_upgrade_and_newer_ones_a_newer_program(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprints = small_set(4)
    with Registry(place) as registry:
        registry.attempt(fingerprints, suspect="them").take(2)
    later = tmp_path / "50% later"
    shutil.copytree(schema.MIGRATIONS, later)
    (later / "versions/v0004_later.py").write_text(NEXT)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", later)
        with pytest.raises(OmlError, match=r"older oml_fast \(version 0003\): run oml-fast registry upgrade"):
            Registry(place)
        name = upgrade(place)[0]
        assert upgrade(place) == (name, "0004", "0004")
        with Registry(place) as registry:
            assert registry.attempt(fingerprints, suspect="them").take(4) == (2, 3)
    for use in (Registry, upgrade):
        with pytest.raises(OmlError, match=r"newer oml_fast \(version 0004\): upgrade oml_fast"):
            use(place)


def test_an_upgrade_that_fails_changes_nothing(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Registry(place).close()
    later = tmp_path / "later"
    shutil.copytree(schema.MIGRATIONS, later)
    (later / "versions/v0004_later.py").write_text(NEXT.replace('"licensees"', '"nowhere"'))
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", later)
        with pytest.raises(OmlError, match=r"cannot be used: .*nowhere"):
            upgrade(place)
    Registry(place).close()
    assert upgrade(place)[1:] == ("0003", "0003")


@pytest.mark.postgres
def test_a_new_postgresql_wants_an_upgrade(postgres_url: str) -> None:
    password = str(make_url(postgres_url).password)
    with pytest.raises(OmlError, match="has no tables yet: run oml-fast registry upgrade") as caught:
        Registry(postgres_url)
    assert password not in str(caught.value)
    name, before, now = upgrade(postgres_url)
    assert (before, now) == (None, "0003")
    assert password not in name
    assert "***" in name
    Registry(postgres_url).close()


@pytest.mark.postgres
def test_a_postgresql_with_other_tables_of_these_names_is_left_alone(postgres_url: str) -> None:
    engine = connection.make_engine(connection.read_url(postgres_url))
    with engine.begin() as connected:
        connected.execute(text("CREATE TABLE keys (id INTEGER)"))
    engine.dispose()
    for use in (Registry, upgrade):
        with pytest.raises(InvalidArgumentError, match="holds tables of another program"):
            use(postgres_url)


@pytest.mark.postgres
def test_a_wrong_password_is_not_shown(postgres_url: str) -> None:
    url = make_url(postgres_url).set(password=WRONG).render_as_string(hide_password=False)
    with pytest.raises(OmlError, match=r"cannot be used: .*password authentication failed") as caught:
        Registry(url)
    assert WRONG not in str(caught.value)


@pytest.mark.postgres
def test_a_server_that_is_gone_spends_nothing_twice(postgres_url: str) -> None:
    upgrade(postgres_url)
    fingerprints = small_set(6)
    with Registry(postgres_url) as registry, Registry(postgres_url) as other:
        attempt = registry.attempt(fingerprints, suspect="them")
        assert attempt.take(2) == (0, 1)
        with other._reading() as connected:
            mine = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            connected.execute(mine)
        assert attempt.take(2) == (2, 3)


def test_a_server_that_cannot_be_reached() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(
        OmlError, match=r"postgresql://me:\*\*\*@127.0.0.1:1/registry.* cannot be used: .*check the URL"
    ) as caught:
        Registry(NOWHERE)
    assert "hush" not in str(caught.value)


def test_passwords_are_never_shown() -> None:
    for url in ("postgresql://me:hush@host/name", "postgresql://me@host/name?password=hush&sslpassword=hush"):
        shown = connection.shown(connection.read_url(url))
        assert shown.startswith("postgresql://me")
        assert "hush" not in shown


def test_without_its_driver_postgresql_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'oml_fast\[postgres\]', or use an SQLite file"):
        Registry(NOWHERE)


def test_a_log_that_is_left_of_a_removed_registry_is_not_taken_for_a_new_one_s(tmp_path: Path) -> None:
    left = tmp_path / "r-wal"
    left.write_bytes(b"of before")
    with pytest.raises(InvalidArgumentError, match="r-wal is left of a registry that was removed: remove it, too"):
        Registry(tmp_path / "r")
    assert not (tmp_path / "r").exists()
    left.unlink()
    Registry(tmp_path / "r").close()


def test_a_second_look_drops_no_lock(tmp_path: Path) -> None:
    """POSIX: closing any descriptor of a file drops this process's locks on it, and with them SQLite's.

    Another process would then take itself for the last one, and delete the log into which this one still writes.
    """
    path = tmp_path / "r.db"
    with Registry(path) as first:
        first.add_licensee("before")
        with Registry(path):
            pass
        _in_another_process("r.add_licensee('between')", path)
        first.add_licensee("after")
        told = _in_another_process("print([each.name for each in r.licensees()])", path)
    assert told == "['after', 'before', 'between']\n"


def _in_another_process(statement: str, path: Path) -> str:
    script = f"from oml_fast.registry import Registry\nwith Registry({str(path)!r}) as r: {statement}"
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
