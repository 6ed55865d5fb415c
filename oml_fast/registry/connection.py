"""Where a registry is, how it is connected to, and what its errors say. No message shows a password."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from ..errors import BackendUnavailableError, InvalidArgumentError, OmlError

BUSY_SECONDS = 30.0
FORMS = "give the path of an SQLite file, or postgresql://user@host/name"
_SECRET_PARAMETERS = ("password", "sslpassword", "passfile")


def read_url(where: str | Path) -> URL:
    """The URL of a registry, from a path (SQLite) or a SQLAlchemy URL. InvalidArgumentError where it can be neither."""
    text = str(where)
    if "://" not in text:
        if text.strip() in ("", ":memory:", "."):
            raise InvalidArgumentError(f"{text!r} is no place for a registry: {FORMS}.")
        return URL.create("sqlite", database=str(Path(text).expanduser()))
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise InvalidArgumentError(f"the registry's URL cannot be read: {FORMS}.") from None
    if url.drivername in ("sqlite", "sqlite+pysqlite"):
        if url.database in (None, "", ":memory:"):
            raise InvalidArgumentError(f"a registry in memory forgets which keys are spent: {FORMS}.")
        return URL.create("sqlite", database=url.database)
    if url.drivername in ("postgresql", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    raise InvalidArgumentError(f"a registry cannot be kept in {url.drivername!r}: {FORMS}.")


def is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def shown(url: URL) -> str:
    """The path or URL as messages show it."""
    if is_sqlite(url):
        return str(url.database)
    shorter = url.set(drivername="postgresql").difference_update_query(_SECRET_PARAMETERS)
    return shorter.render_as_string(hide_password=True)


def make_engine(url: URL) -> Engine:
    """An engine that connects to nothing yet. BackendUnavailableError where PostgreSQL's driver is missing."""
    if is_sqlite(url):
        engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS}, hide_parameters=True)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        return create_engine(
            url,
            isolation_level="READ COMMITTED",  # after its lock, a statement sees what the last holder committed
            connect_args={"client_encoding": "utf8"},  # a database in SQL_ASCII would answer with bytes
            pool_pre_ping=True,
            hide_parameters=True,
        )
    except ImportError as error:
        raise BackendUnavailableError(
            "a registry in PostgreSQL needs psycopg: pip install 'oml_fast[postgres]', or use an SQLite file."
        ) from error


def for_writing(engine: Engine) -> Engine:
    """The same engine, whose transactions on SQLite take the write lock before they read."""
    return engine.execution_options(oml_fast_writes=True)


@contextmanager
def explained(url: URL) -> Iterator[None]:
    """Turn what SQLAlchemy raises into one line that says which registry it was and what to do."""
    try:
        yield
    except SQLAlchemyError as error:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        raise _explanation(url, str(cause).strip()) from error


def _explanation(url: URL, reason: str) -> OmlError:
    name = shown(url)
    if is_sqlite(url) and "locked" in reason:
        return OmlError(f"another process has held the registry {name} for {BUSY_SECONDS:g} seconds: try again.")
    if is_sqlite(url) and "not a database" in reason:
        return InvalidArgumentError(f"{name} is no SQLite file: {FORMS}.")
    reason = reason.splitlines()[0].rstrip(".") if reason else "no reason given"
    if url.password:
        reason = reason.replace(str(url.password), "***")
    way_out = (
        "check that the disk has space and the file may be written"
        if is_sqlite(url)
        else ("check the URL, that the server runs, and that its user may use the database")
    )
    return OmlError(f"the registry {name} cannot be used: {reason}. Nothing is half-written; {way_out}.")


def _prepare_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    """`synchronous = FULL`: a key that was asked must still be spent after a power failure."""
    connection.isolation_level = None  # transactions begin where SQLAlchemy says, not where sqlite3 guesses
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("oml_fast_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
