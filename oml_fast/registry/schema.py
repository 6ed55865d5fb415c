"""Which version a registry's tables have, and making them those of this oml_fast."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import tempfile
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, inspect, text

from ..errors import InvalidArgumentError, OmlError
from ..files import cannot_write
from .connection import explained, for_writing, is_sqlite, make_engine, shown
from .connection import read_url as _read_url
from .tables import VERSION_TABLE, metadata

MIGRATIONS = Path(__file__).parent / "migrations"
UPGRADE_LOCK = 0x6F6D6C66  # any number that all oml_fast agree on


def open_engine(url: URL, *, create: bool = True) -> Engine:
    """An engine on a registry of this version. A new SQLite file is made, with `create`; nothing else is changed.

    Raises OmlError where the tables are older or newer, and InvalidArgumentError where this is no registry.
    """
    if is_sqlite(url):
        _require_file(Path(str(url.database)), create=create)
    engine = make_engine(url)
    try:
        with explained(url), engine.connect() as connection:
            _require_current(connection, shown(url))
    except BaseException:
        engine.dispose()
        raise
    return engine


def upgrade(where: str | Path) -> tuple[str, str | None, str]:
    """Bring a registry's tables to this version, all or nothing; make it where there is none.

    Returns its name as messages show it, the version before (None: new) and the version now.
    """
    url = _read_url(where)
    path = Path(str(url.database))
    if is_sqlite(url) and not path.exists():
        _create_file(path)
        return shown(url), None, _head()
    if is_sqlite(url):
        _require_file(path)
    engine = make_engine(url)
    try:
        with explained(url), for_writing(engine).begin() as connection:
            if not is_sqlite(url):
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": UPGRADE_LOCK})
            before = _version(connection)
            _require_upgradable(connection, before, shown(url))
            _migrate(connection)
    finally:
        engine.dispose()
    return shown(url), before, _head()


def _require_file(path: Path, *, create: bool = True) -> None:
    """Make a new SQLite registry where none is, or refuse that; refuse one that others can read."""
    if not path.exists():
        if not create:
            raise InvalidArgumentError(
                f"there is no registry at {path}: name one that is there, or make it with oml-fast registry add-set."
            )
        _create_file(path)
    if not path.is_file():
        raise InvalidArgumentError(f"{path} is no file: name a file for the registry.")
    if path.stat().st_size == 0:
        raise InvalidArgumentError(f"{path} is empty: remove it, and a registry is made there.")
    # Never open the file here, not even to look at it: closing it again would drop the locks that SQLite holds on it in
    # this process (POSIX), and another process would delete the log under a connection that still writes to it.
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise InvalidArgumentError(
            f"{path}, if it is a registry, can be used by others (mode {mode:04o}): chmod 600 {path}"
        )


def _create_file(path: Path) -> None:
    """A whole new registry appears at `path`, or none: made under another name, then linked. Mode 0600."""
    if (left := Path(f"{path}-wal")).exists():
        raise InvalidArgumentError(f"{left} is left of a registry that was removed: remove it, too.")
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(descriptor)
        _fill(temporary)
        with contextlib.suppress(FileExistsError):  # another process was quicker; its registry is as good
            os.link(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        for suffix in ("", "-wal", "-shm") if temporary else ():
            Path(f"{temporary}{suffix}").unlink(missing_ok=True)


def _fill(path: str) -> None:
    url = URL.create("sqlite", database=path)
    engine = make_engine(url)
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")  # kept in the file
        with explained(url), for_writing(engine).begin() as begun:
            _migrate(begun)
    finally:
        engine.dispose()


def _version(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def _require_current(connection: Connection, name: str) -> None:
    version = _version(connection)
    if version == _head():
        return
    _require_upgradable(connection, version, name)
    has = "has no tables yet" if version is None else f"has the tables of an older oml_fast (version {version})"
    raise OmlError(f"the registry {name} {has}: run oml-fast registry upgrade.")


def _require_upgradable(connection: Connection, version: str | None, name: str) -> None:
    if version is None:
        foreign = sorted(set(inspect(connection).get_table_names()) & set(metadata.tables))
        if foreign or (connection.dialect.name == "sqlite" and inspect(connection).get_table_names()):
            raise InvalidArgumentError(f"{name} holds tables of another program: name a database of its own.")
    elif version not in {script.revision for script in _scripts().walk_revisions()}:
        raise OmlError(f"the registry {name} is of a newer oml_fast (version {version}): upgrade oml_fast.")


def _head() -> str:
    head = _scripts().get_current_head()
    assert head is not None
    return head


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _migrate(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
