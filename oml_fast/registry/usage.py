"""What each licensee uses of each model, by hour: metered by servers, read by owners, in the registry's own database.

All processes of all servers add to the same rows: each row is raised where it stands, never read first, so that nothing
is lost between them.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Insert, Row, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from ..errors import BackendUnavailableError, InvalidArgumentError, OmlError, StoreUnavailableError
from ..permission.permission import is_name
from .connection import explained, for_writing, is_sqlite, read_url, shown
from .permissions import SECONDS_TO_WAIT
from .schema import open_engine
from .storing import require_digest
from .tables import usage

HOUR = 3600
LATEST = 253_402_300_800  # seconds since 1970 of the year 10000, which no calendar here can show
MOST = 2**48  # of a count at once, so that no row comes near 2**63


@dataclass(frozen=True, slots=True)
class Used:
    """What one licensee used of one model.

    requests: HTTP requests that were admitted. generations: prompts times choices. prompt_tokens, output_tokens: token
    ids. aborted: those of the requests that did not end.
    """

    licensee: str
    model_digest: str
    requests: int = 0
    generations: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    aborted: int = 0


COUNTS = tuple(field.name for field in fields(Used))[2:]


class UsageLog:
    """The usage in a registry at a path (SQLite, made where there is none) or a URL (PostgreSQL).

    Raises InvalidArgumentError where the place can be no registry, or where none is there and `create` is false, and
    StoreUnavailableError where it cannot be used now or has tables of another version. Safe for threads; open it after
    a fork, not before.
    """

    def __init__(self, where: str | Path, *, create: bool = True) -> None:
        self._url = read_url(where)
        try:
            self._engine = open_engine(self._url, create=create)
        except (InvalidArgumentError, BackendUnavailableError):
            raise
        except OmlError as error:
            raise StoreUnavailableError(str(error)) from error
        self._writer = for_writing(self._engine)
        self._file = self._inode()

    @property
    def name(self) -> str:
        """The path or URL, without a password."""
        return shown(self._url)

    def add(self, used: Sequence[Used], now: float) -> None:
        """Add to the hour of `now` (seconds since 1970), all of it in one transaction, or nothing.

        Raises InvalidArgumentError for what is no usage, and StoreUnavailableError where the registry cannot be used
        now: then nothing was added, and the same may be added again. The exception is a PostgreSQL server that dies in
        the very commit, and does not answer when it is asked right afterwards whether the commit was done.
        """
        rows = _rows(used, now)
        if not rows:
            return
        if self._inode() != self._file:
            raise StoreUnavailableError(f"the registry {self.name} was removed or replaced: restart the server.")
        number = None
        with self._available():
            try:
                with self._writer.begin() as connection:
                    number = _begin(connection)
                    connection.execute(_raise_counts(connection.dialect.name), rows)
            except DBAPIError:
                if number is None or not self._committed(number):
                    raise

    def total(
        self,
        *,
        licensee: str | None = None,
        model_digest: str | None = None,
        since: float | None = None,
        until: float | None = None,
    ) -> list[Used]:
        """Sums by licensee and model, sorted by them; of one licensee or one model, where these are given.

        since, until (seconds since 1970): only hours that begin at `since` or later, and before `until`. Raises
        InvalidArgumentError for a digest or a time that cannot be, or where no time lies between the two.
        """
        wanted = _wanted(licensee, model_digest, since, until)
        return [_used(row) for row in self._summed([usage.c.licensee, usage.c.model_digest], wanted)]

    def by_hour(
        self,
        *,
        licensee: str | None = None,
        model_digest: str | None = None,
        since: float | None = None,
        until: float | None = None,
    ) -> list[tuple[int, Used]]:
        """As `total`, for each hour that has any: when the hour begins (seconds since 1970), oldest first."""
        wanted = _wanted(licensee, model_digest, since, until)
        found = self._summed([usage.c.hour, usage.c.licensee, usage.c.model_digest], wanted)
        return [(row[0], _used(row[1:])) for row in found]

    def close(self) -> None:
        self._engine.dispose()

    def _summed(
        self, by: Sequence[ColumnElement[Any]], wanted: Sequence[ColumnElement[bool]]
    ) -> Sequence[Row[*tuple[Any, ...]]]:
        sums = [func.sum(usage.c[name]) for name in COUNTS]
        with self._available(), self._engine.begin() as connection:
            return connection.execute(select(*by, *sums).where(*wanted).group_by(*by).order_by(*by)).all()

    def _committed(self, number: int) -> bool:
        """Whether a transaction that failed was committed all the same: its answer can be lost (PostgreSQL)."""
        for _ in range(10 * SECONDS_TO_WAIT):
            with self._engine.begin() as connection:
                status = connection.scalar(select(func.txid_status(number)))
            if status != "in progress":
                return bool(status == "committed")
            time.sleep(0.1)
        return False

    def _inode(self) -> int | None:
        """Of an SQLite file; None where there is none. What is written to one that was removed, nobody sees."""
        if not is_sqlite(self._url):
            return None
        try:
            return os.stat(str(self._url.database)).st_ino
        except OSError:
            return None

    @contextmanager
    def _available(self) -> Iterator[None]:
        try:
            with explained(self._url):
                yield
        except OmlError as error:
            raise StoreUnavailableError(str(error)) from error


def _rows(used: Sequence[Used], now: float) -> list[dict[str, Any]]:
    """Rows of the table, in the same order in every process, so that no two wait for each other."""
    hour = int(_time(now, "the time of usage")) // HOUR * HOUR
    for each in used:
        if not is_name(each.licensee):
            raise InvalidArgumentError(f"a licensee's name cannot be {each.licensee!r}: give what a permission has.")
        require_digest(each.model_digest, "a model's digest")
        for name in COUNTS:
            count = getattr(each, name)
            if type(count) is not int or not 0 <= count < MOST:
                raise InvalidArgumentError(f"{name} cannot be {count!r}: count from 0 to less than {MOST}.")
    ordered = sorted(used, key=lambda each: (each.licensee, each.model_digest))
    return [{"hour": hour, **asdict(each)} for each in ordered]


def _begin(connection: Connection) -> int | None:
    """On PostgreSQL: bound the waiting, for a server that hangs is as good as gone; and the transaction's number."""
    if connection.dialect.name == "sqlite":
        return None
    bounded = func.set_config("statement_timeout", f"{SECONDS_TO_WAIT}s", True)
    return int(connection.execute(select(func.txid_current(), bounded)).one()[0])


def _raise_counts(dialect: str) -> Insert:
    into = sqlite.insert(usage) if dialect == "sqlite" else postgresql.insert(usage)
    raised = {name: usage.c[name] + into.excluded[name] for name in COUNTS}
    return into.on_conflict_do_update(index_elements=list(usage.primary_key), set_=raised)


def _wanted(
    licensee: str | None, model_digest: str | None, since: float | None, until: float | None
) -> list[ColumnElement[bool]]:
    wanted = []
    if licensee is not None:
        wanted.append(usage.c.licensee == licensee)
    if model_digest is not None:
        require_digest(model_digest, "a model's digest")
        wanted.append(usage.c.model_digest == model_digest)
    if since is not None:
        wanted.append(usage.c.hour >= math.ceil(_time(since, "since")))
    if until is not None:
        wanted.append(usage.c.hour < math.ceil(_time(until, "until")))
    if since is not None and until is not None and since >= until:
        raise InvalidArgumentError(f"no time lies from since ({since}) to until ({until}): give a later until.")
    return wanted


def _time(seconds: float, what: str) -> float:
    if not 0 <= seconds < LATEST:
        raise InvalidArgumentError(f"{what} cannot be {seconds!r} seconds since 1970: give one from 1970 to 9999.")
    return seconds


def _used(row: Sequence[Any]) -> Used:
    """PostgreSQL adds 64-bit numbers up to a decimal."""
    licensee, model_digest, *counts = row
    return Used(licensee, model_digest, *map(int, counts))
