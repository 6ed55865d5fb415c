"""Attempts: one verification's hold on keys of a set.

A take is one transaction that first locks the set (SQLite: the file's one write lock; PostgreSQL: the set's row), so
that takes from one set come one after another: no key twice, none skipped, in the set's order. Keys are spent before
`take` returns, so before anyone is asked; a killed process has spent them, and its attempt gives them again when it is
resumed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, case, exists, insert, or_, select, update

from ..errors import InvalidArgumentError
from .records import Clock, canonical_json, json_digest, timestamp, without_secrets
from .storing import require_digest
from .tables import attempts, exposures, keys, sets

REUSE = ("never", "other_suspects", "any")
INCONCLUSIVE = "inconclusive"  # the one verdict that more keys may still change

Transaction = Callable[[], AbstractContextManager[Connection]]


@dataclass(frozen=True, slots=True)
class _Hold:
    """What an attempt draws: from which set, for whom, and which spent keys too."""

    id: str
    set_id: int
    set_digest: str
    suspect: str
    reuse: str


class RegistryAttempt:
    """The protocol of `verify.Attempt`, kept in a registry. Made by `Registry.attempt`."""

    def __init__(self, transaction: Transaction, clock: Clock, hold: _Hold, before: Sequence[int]) -> None:
        self._transaction = transaction
        self._clock = clock
        self._hold = hold
        self._before = tuple(before)
        self._shown = len(before)

    @property
    def id(self) -> str:
        """Names this attempt: what `resume` takes."""
        return self._hold.id

    def take(self, count: int) -> tuple[int, ...]:
        """Numbers of the next keys, at most `count`, in the set's order; spent on this suspect from now on.

        Fewer, or none, where the set has no more. A resumed attempt gives those again that it took before, first.
        Raises InvalidArgumentError where the attempt has ended, or where others spent the last keys before it got one.
        """
        if count < 1:
            raise InvalidArgumentError(f"cannot take {count} keys: take at least one.")
        again, rest = self._before[:count], self._before[count:]
        if len(again) == count:
            self._before = rest
            return again
        with self._transaction() as connection:
            _require_running(connection, self._hold.id, lock=True)
            new = _take(connection, self._hold, count - len(again), timestamp(self._clock))
            if not self._shown and not new:
                raise _all_spent(connection, self._hold)
        self._before = rest  # only now: a take that failed gives the same keys when it is repeated
        self._shown += len(new)
        return again + new

    def ended(self, verdict: str, report: Mapping[str, Any], digest: str | None = None) -> None:
        """Record the verdict, the report's digest, and the report without anything secret. Once, unless resumed since.

        digest: the one that the report's readers see (`report.report_digest`). None: SHA-256 over the canonical JSON of
        the report as given. InvalidArgumentError where it is no digest, or the attempt has ended.
        """
        if digest is None:
            digest = json_digest(dict(report))
        require_digest(digest, "a report's digest")
        values = {"verdict": verdict, "report_digest": digest, "report": canonical_json(without_secrets(report))}
        with self._transaction() as connection:
            running = (attempts.c.id == self._hold.id) & attempts.c.ended_at.is_(None)
            change = update(attempts).where(running).values(ended_at=timestamp(self._clock), **values)
            if connection.execute(change).rowcount == 0:
                _require_running(connection, self._hold.id)


def start(connection: Connection, set_row: Any, suspect: str, reuse: str, now: str) -> _Hold:
    """A new attempt, in the caller's transaction. InvalidArgumentError where no key is left for this suspect."""
    hold = _Hold(secrets.token_hex(8), set_row.id, set_row.digest, suspect, reuse)
    if connection.scalar(_fresh(hold.set_id).limit(1)) is None and not _again(connection, hold, 1):
        raise _all_spent(connection, hold)
    values = {"id": hold.id, "set_id": hold.set_id, "suspect": suspect, "started_at": now}
    connection.execute(insert(attempts).values(values))
    return hold


def resumed(
    connection: Connection, set_row: Any, suspect: str, reuse: str, attempt_id: str
) -> tuple[_Hold, tuple[int, ...]]:
    """An attempt to go on with, and the keys that it took, in the order of taking. Or InvalidArgumentError.

    One that ended with `inconclusive` is open again: its verdict and report are forgotten until it ends anew.
    """
    row = connection.execute(select(attempts).where(attempts.c.id == attempt_id)).one_or_none()
    if row is None:
        raise InvalidArgumentError(
            f"attempt {attempt_id!r} is not in this registry: oml-fast registry verifications lists those that are."
        )
    if row.set_id != set_row.id:
        raise InvalidArgumentError(
            f"attempt {attempt_id} asks another set than {set_row.digest}: name that set, or start a new attempt."
        )
    if row.suspect != suspect:
        raise InvalidArgumentError(
            f"attempt {attempt_id} asks {row.suspect!r}, not {suspect!r}: name that suspect, or start a new attempt."
        )
    if row.verdict == INCONCLUSIVE:
        nothing = dict.fromkeys(("ended_at", "verdict", "report_digest", "report"))
        connection.execute(update(attempts).where(attempts.c.id == attempt_id).values(nothing))
    else:
        _require_running(connection, attempt_id)
    shown = select(exposures.c.number).where(exposures.c.attempt_id == attempt_id).order_by(exposures.c.id)
    return _Hold(attempt_id, row.set_id, set_row.digest, suspect, reuse), tuple(connection.scalars(shown))


def lock_set(connection: Connection, set_id: int) -> None:
    """Until the transaction ends, nobody else takes, marks or reorders keys of the set. SQLite holds its lock already.

    FOR NO KEY UPDATE, so that rows which refer to the set can still be added.
    """
    connection.execute(select(sets.c.id).where(sets.c.id == set_id).with_for_update(key_share=True))


def _fresh(set_id: int) -> Select[int, int]:
    """Number and place of the keys nobody has seen, first to be asked first."""
    fresh = (keys.c.set_id == set_id) & keys.c.spent_at.is_(None)
    return select(keys.c.number, keys.c.place).where(fresh).order_by(keys.c.place)


def _take(connection: Connection, hold: _Hold, count: int, now: str) -> tuple[int, ...]:
    """Spend the next keys on the suspect. The set is locked, so the keys up to the last place are those selected."""
    rows = connection.execute(_fresh(hold.set_id).limit(count)).all()
    numbers = (*(row.number for row in rows), *_again(connection, hold, count - len(rows)))
    if rows:
        these = (keys.c.set_id == hold.set_id) & keys.c.spent_at.is_(None) & (keys.c.place <= rows[-1].place)
        spent = {"attempt_id": hold.id, "spent_at": now, "suspect": hold.suspect}
        connection.execute(update(keys).where(these).values(spent))
    if numbers:
        shown = {"set_id": hold.set_id, "suspect": hold.suspect, "attempt_id": hold.id, "at": now}
        connection.execute(insert(exposures), [{"number": number, **shown} for number in numbers])
    return numbers


def _again(connection: Connection, hold: _Hold, count: int) -> tuple[int, ...]:
    """Spent keys that this attempt may show all the same: those that this suspect has not seen first."""
    if hold.reuse == "never" or count < 1:
        return ()
    here = _shown(exposures.c.attempt_id == hold.id)
    seen = _shown(or_(exposures.c.suspect == hold.suspect, exposures.c.suspect.is_(None)))
    spent = (keys.c.set_id == hold.set_id) & keys.c.spent_at.is_not(None) & ~here
    if hold.reuse == "other_suspects":
        spent &= ~seen
    chosen = select(keys.c.number).where(spent).order_by(case((seen, 1), else_=0), keys.c.place).limit(count)
    return tuple(connection.scalars(chosen))


def _shown(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether the key of the outer query was shown under a condition."""
    same = (exposures.c.set_id == keys.c.set_id) & (exposures.c.number == keys.c.number)
    return exists().where(same & condition).correlate(keys)


def _require_running(connection: Connection, attempt_id: str, *, lock: bool = False) -> None:
    """InvalidArgumentError where the attempt has ended. `lock` also locks its set, as `lock_set` does."""
    state = select(attempts.c.ended_at, attempts.c.verdict).where(attempts.c.id == attempt_id)
    if lock:
        state = state.join(sets).with_for_update(key_share=True, of=sets)
    row = connection.execute(state).one()
    if row.ended_at is not None:
        way_out = (
            "resume it by its id"
            if row.verdict == INCONCLUSIVE
            else "its report stands in --out; choose another --out for a new attempt"
        )
        raise InvalidArgumentError(
            f"attempt {attempt_id} ended at {row.ended_at} with the verdict {row.verdict}: {way_out}."
        )


def _all_spent(connection: Connection, hold: _Hold) -> InvalidArgumentError:
    total = connection.scalar(select(sets.c.num_fingerprints).where(sets.c.id == hold.set_id))
    ways = {
        "never": "generate a new set, or ask those that only other suspects have seen (--ask-again other_suspects)",
        "other_suspects": "this suspect has seen each of them: generate a new set, or ask again with --ask-again any",
        "any": "generate a new set",
    }
    return InvalidArgumentError(f"all {total} keys of the set {hold.set_digest} are spent: {ways[hold.reuse]}.")
