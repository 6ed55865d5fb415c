"""The store of nonces and quotas in the registry's own database: for permissions that many hosts check (PostgreSQL).

Statements run under READ COMMITTED, each seeing what was committed before it. A nonce is inserted first, and what the
store knows is looked at afterwards: a clean-up that removed the same nonce has committed by then, and is seen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, and_, delete, event, func, select, update

from ..errors import InvalidArgumentError, KeyListError, OmlError, ReplayedNonce, StoreUnavailableError
from ..permission.permission import SKEW, Limits
from ..permission.stores import FORGET_AT_ONCE, Amount, Earlier, Nonce, Usage, granted, older_list
from .connection import explained, for_writing, is_sqlite, read_url, shown
from .schema import open_engine
from .storing import insert_new
from .tables import permission_lists, permission_nonces, permission_quotas, permission_state

SECONDS_TO_WAIT = 4  # of one statement


class PermissionStore:
    """See `permission.Store`. At the path or URL of a registry, whose tables are there already.

    `now` is when it is opened, which counts where the registry never kept nonces before. Raises InvalidArgumentError
    where there is no registry, StoreUnavailableError where it cannot be used now. Open it after a fork, not before.
    """

    waits = True

    def __init__(self, where: str | Path, *, now: float | None = None) -> None:
        self._url = read_url(where)
        try:
            self._engine = open_engine(self._url, create=False)
        except InvalidArgumentError:
            raise
        except OmlError as error:
            raise StoreUnavailableError(str(error)) from error
        if not is_sqlite(self._url):
            _bound_waiting(self._engine)
        self._writer = for_writing(self._engine)
        began = (time.time() if now is None else now) + SKEW
        with self._writing() as connection:
            insert_new(connection, permission_state, {"one": 1, "began": began, "forgotten": 0.0})

    @property
    def name(self) -> str:
        return f"registry {shown(self._url)}"

    def spend(self, nonce: Nonce, body: str | None, now: float, retry_seconds: float) -> Earlier | None:
        row = {"issuer": nonce.issuer, "nonce": nonce.nonce, "forget_at": nonce.forget_at}
        row |= {"body": body, "spent_at": now, "finished": False}
        with self._writing() as connection:
            new = insert_new(connection, permission_nonces, row)
            _require_known(connection, nonce)
            if new:
                return None
            found = connection.execute(select(permission_nonces).where(_is(permission_nonces, nonce))).one()
            if body is None or body != found.body or not 0 <= now - found.spent_at <= retry_seconds:
                raise ReplayedNonce("its nonce is spent.")
            return Earlier("finished" if found.finished else "started", found.answer)

    def finish(self, nonce: Nonce, answer: bytes | None, now: float) -> None:
        change = update(permission_nonces).where(_is(permission_nonces, nonce))
        with self._writing() as connection:
            connection.execute(change.values(finished=True, answer=answer))

    def lease(self, nonce: Nonce, limits: Limits, need: Amount, now: float) -> Amount:
        row = {"issuer": nonce.issuer, "nonce": nonce.nonce, "forget_at": nonce.forget_at}
        here = _is(permission_quotas, nonce)
        with self._writing() as connection:
            insert_new(connection, permission_quotas, row | {"requests": 0, "output_tokens": 0})
            taken = _taken(connection, nonce, lock=True)
            _require_known(connection, nonce)
            amount = granted(limits, taken, need)
            new = taken + amount
            values = {"requests": new.requests, "output_tokens": new.output_tokens}
            connection.execute(update(permission_quotas).where(here).values(values))
            return amount

    def give_back(self, nonce: Nonce, amount: Amount) -> None:
        with self._writing() as connection:
            new = (_taken(connection, nonce, lock=True) - amount).positive()
            values = {"requests": new.requests, "output_tokens": new.output_tokens}
            connection.execute(update(permission_quotas).where(_is(permission_quotas, nonce)).values(values))

    def usage(self, nonce: Nonce) -> Usage:
        spent = select(permission_nonces.c.nonce).where(_is(permission_nonces, nonce))
        with self._writing() as connection:
            found = Usage(connection.execute(spent).first() is not None, _taken(connection, nonce))
            _require_known(connection, nonce)
            return found

    def remember_list(self, owner: str, version: int, digest: str) -> None:
        here = permission_lists.c.owner == owner
        with self._writing() as connection:
            insert_new(connection, permission_lists, {"owner": owner, "version": version, "digest": digest})
            seen = connection.execute(select(permission_lists).where(here).with_for_update()).one()
            if version < seen.version or (version == seen.version and digest != seen.digest):
                raise KeyListError(older_list(version, seen.version))
            connection.execute(update(permission_lists).where(here).values(version=version, digest=digest))

    def clean_up(self, now: float, answers_before: float) -> None:
        old_answers = and_(permission_nonces.c.answer.is_not(None), permission_nonces.c.spent_at < answers_before)
        with self._writing() as connection:
            connection.execute(update(permission_nonces).where(old_answers).values(answer=None))
            for table in (permission_nonces, permission_quotas):
                old = select(table.c.forget_at).where(table.c.forget_at <= now).order_by(table.c.forget_at)
                times = connection.scalars(old.limit(FORGET_AT_ONCE)).all()
                if times:
                    forgotten = func.greatest if connection.dialect.name == "postgresql" else func.max
                    latest = forgotten(permission_state.c.forgotten, float(times[-1]))
                    connection.execute(update(permission_state).values(forgotten=latest))
                    connection.execute(delete(table).where(table.c.forget_at <= times[-1]))

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """One transaction. Whatever the database says but a refusal means that nothing is known."""
        try:
            with explained(self._url), self._writer.begin() as connection:
                yield connection
        except OmlError as error:
            if type(error) not in (OmlError, InvalidArgumentError):
                raise
            raise StoreUnavailableError(str(error)) from error


def _require_known(connection: Connection, nonce: Nonce) -> None:
    state = connection.execute(select(permission_state.c.began, permission_state.c.forgotten)).one()
    nonce.require_known(state.began, state.forgotten)


def _taken(connection: Connection, nonce: Nonce, *, lock: bool = False) -> Amount:
    query = select(permission_quotas.c.requests, permission_quotas.c.output_tokens)
    query = query.where(_is(permission_quotas, nonce))
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    return Amount() if row is None else Amount(row.requests, row.output_tokens)


def _is(table: Table, nonce: Nonce) -> Any:
    return and_(table.c.issuer == nonce.issuer, table.c.nonce == nonce.nonce)


def _bound_waiting(engine: Engine) -> None:
    """A server that hangs is as good as gone."""

    @event.listens_for(engine, "connect")
    def set_timeouts(connection: Any, record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET statement_timeout = '{SECONDS_TO_WAIT}s'")
        connection.commit()
