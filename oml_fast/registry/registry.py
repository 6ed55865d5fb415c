"""Registry: who holds which set, which models carry it, who was verified with it, and which keys are spent.

Every method is one transaction: it happens whole or not at all, also where the process is killed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import Connection, Row, Select, case, func, insert, or_, select

from ..errors import InvalidArgumentError
from . import attempts as holding
from .attempts import REUSE, RegistryAttempt
from .connection import explained, for_writing, read_url, shown
from .records import AttemptRecord, Clock, KeyCount, LicenseeRecord, ModelRecord, SetRecord, timestamp, utc_now
from .schema import open_engine
from .storing import LONGEST_PLACE, insert_new, mark_spent, place_keys, require_digest, require_name, store_set
from .tables import attempts, exposures, keys, licensees, models, sets

if TYPE_CHECKING:
    from ..fingerprint import FingerprintSet

ADD_SET = "oml-fast registry add-set"

_SETS = select(
    sets.c.digest,
    sets.c.num_fingerprints,
    sets.c.base_model,
    sets.c.base_model_digest,
    sets.c.tokenizer_digest,
    sets.c.secret_commitment,
    sets.c.order_digest,
    licensees.c.name,
    sets.c.added_at,
).select_from(sets.outerjoin(licensees))

_ATTEMPTS = select(
    attempts.c.id,
    sets.c.digest,
    licensees.c.name,
    attempts.c.suspect,
    attempts.c.started_at,
    attempts.c.ended_at,
    attempts.c.verdict,
    attempts.c.report_digest,
    select(func.count(exposures.c.id)).where(exposures.c.attempt_id == attempts.c.id).scalar_subquery(),
).select_from(attempts.join(sets).outerjoin(licensees))


class Registry:
    """A registry at a path (SQLite, made where there is none) or a URL (PostgreSQL). Close it, or use it in `with`.

    Raises OmlError where it cannot be used or has tables of another version, InvalidArgumentError where the place can
    be no registry, or where none is there and `create` is false. Open it after a fork, not before. `clock` gives the
    times that are stored.
    """

    def __init__(self, where: str | Path, *, create: bool = True, clock: Clock = utc_now) -> None:
        self._url = read_url(where)
        self._clock = clock
        self._engine = open_engine(self._url, create=create)
        self._writer = for_writing(self._engine)

    @property
    def name(self) -> str:
        """The path or URL, without a password."""
        return shown(self._url)

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add_licensee(self, name: str, note: str = "") -> None:
        """Add one who may hold a copy. InvalidArgumentError where the name is taken."""
        require_name(name, "a licensee's name")
        if note:
            require_name(note, "a note")
        with self._writing() as connection:
            values = {"name": name, "note": note, "added_at": timestamp(self._clock)}
            if not insert_new(connection, licensees, values):
                raise InvalidArgumentError(f"the licensee {name!r} is there already: choose another name.")

    def licensees(self) -> tuple[LicenseeRecord, ...]:
        """All licensees, by name."""
        found = (
            select(licensees.c.name, licensees.c.note, licensees.c.added_at, func.count(sets.c.id))
            .outerjoin(sets, sets.c.licensee_id == licensees.c.id)
            .group_by(licensees.c.id, licensees.c.name, licensees.c.note, licensees.c.added_at)
            .order_by(licensees.c.name)
        )
        return tuple(LicenseeRecord(*row) for row in self._rows(found))

    def add_set(
        self, fingerprints: FingerprintSet, *, licensee: str | None = None, order: Sequence[int] | None = None
    ) -> SetRecord:
        """Add a set, for a licensee or as the owner's own; `order` has its numbers in the order of asking.

        For a set that is there: `licensee` is recorded if it had none, and the keys that are left are asked in `order`
        from now on. Raises InvalidArgumentError where the licensee is unknown, is another one, or comes too late (a
        model with the set is recorded, or a key is spent), and where `order` is no order of the set's numbers.
        """
        with self._writing() as connection:
            row = store_set(connection, fingerprints, licensee, order, timestamp(self._clock))
            if order is not None:
                place_keys(connection, row, order)
            return SetRecord(*connection.execute(_SETS.where(sets.c.id == row.id)).one())

    def sets(self, licensee: str | None = None) -> tuple[SetRecord, ...]:
        """All sets in the order of adding, or those of one licensee."""
        found = _SETS if licensee is None else _SETS.where(licensees.c.name == licensee)
        return tuple(SetRecord(*row) for row in self._rows(found.order_by(sets.c.id)))

    def find_set(self, digest: str) -> SetRecord:
        """The set whose digest this is or begins with. InvalidArgumentError where none or several do."""
        found = [record for record in self.sets() if digest and record.digest.startswith(digest)]
        if len(found) != 1:
            if found:
                fault, way_out = f"{len(found)} sets of the registry have digests that begin", "name more of it"
            else:
                fault, way_out = "no set of the registry has a digest that begins", "add it first, with " + ADD_SET
            raise InvalidArgumentError(f"{fault} with {digest!r}: {way_out}. oml-fast registry sets lists them.")
        return found[0]

    def add_model(self, digest: str, set_digest: str, path: str) -> None:
        """Record that the model with this digest carries the set; `path` is where it is, or its name.

        Raises InvalidArgumentError where the set is unknown, or where the model is the set's own base model.
        """
        require_digest(digest, "a model's digest")
        require_name(path, "a model's path or name", LONGEST_PLACE)
        with self._writing() as connection:
            row = self._set(connection, set_digest)
            holding.lock_set(connection, row.id)
            if digest == row.base_model_digest:
                raise InvalidArgumentError(
                    f"{path} is the base model of the set {set_digest}, without fingerprints: name the embedded one."
                )
            values = {"digest": digest, "set_id": row.id, "path": path, "added_at": timestamp(self._clock)}
            insert_new(connection, models, values)

    def models(self, set_digest: str | None = None) -> tuple[ModelRecord, ...]:
        """All models in the order of adding, or those that carry one set."""
        found = select(models.c.digest, sets.c.digest, models.c.path, licensees.c.name, models.c.added_at)
        found = found.select_from(models.join(sets).outerjoin(licensees))
        if set_digest is not None:
            found = found.where(sets.c.digest == set_digest)
        return tuple(ModelRecord(*row) for row in self._rows(found.order_by(models.c.added_at, models.c.digest)))

    def attempt(
        self,
        fingerprints: FingerprintSet,
        *,
        suspect: str,
        order: Sequence[int] | None = None,
        resume: str | None = None,
        reuse: str = "never",
    ) -> RegistryAttempt:
        """Begin to ask a suspect keys of a set (`verify(..., attempt=...)`), or go on with the attempt `resume`.

        The set is added if it is not there. `order`: the set's numbers in the order of asking, which is fixed as soon
        as a key is spent. `reuse`: "never" asks only keys that nobody has seen; "other_suspects" then asks those that
        this suspect has not seen; "any" then asks all again. `resume`: one that was stopped, or ended with
        `inconclusive`. Raises InvalidArgumentError where all keys are spent, the order is another one, or the attempt
        to resume is unknown, has its verdict, or is another suspect's or set's. Do not resume an attempt that still
        runs: it would show its keys twice.
        """
        require_name(suspect, "a suspect's name", LONGEST_PLACE)
        if reuse not in REUSE:
            raise InvalidArgumentError(f"reuse {reuse!r} is unknown: choose {', '.join(REUSE)}.")
        with self._writing() as connection:
            now = timestamp(self._clock)
            row = store_set(connection, fingerprints, None, order, now)
            if order is not None:
                place_keys(connection, row, order, only_unspent=True)
            before: tuple[int, ...] = ()
            if resume is None:
                hold = holding.start(connection, row, suspect, reuse, now)
            else:
                hold, before = holding.resumed(connection, row, suspect, reuse, resume)
        return RegistryAttempt(self._writing, self._clock, hold, before)

    def spend(self, set_digest: str, numbers: Sequence[int], *, suspect: str | None = None) -> int:
        """Mark keys as revealed by other ways than an attempt, to one suspect or (None) to everyone.

        Returns how many of them were not spent before. InvalidArgumentError where a number is not in the set.
        """
        if suspect is not None:
            require_name(suspect, "a suspect's name", LONGEST_PLACE)
        if not numbers:
            raise InvalidArgumentError("no keys to mark as spent: name at least one number.")
        with self._writing() as connection:
            row = self._set(connection, set_digest)
            holding.lock_set(connection, row.id)
            state = connection.execute(select(keys.c.number, keys.c.spent_at).where(keys.c.set_id == row.id))
            unspent = {number: spent_at is None for number, spent_at in state}
            if unknown := sorted(set(numbers) - unspent.keys()):
                raise InvalidArgumentError(f"the set {set_digest} has no key {unknown[0]}: give numbers from its file.")
            marked = sorted(set(numbers))
            new = [number for number in marked if unspent[number]]
            now = timestamp(self._clock)
            mark_spent(connection, row.id, new, suspect, now)
            shown_now = {"set_id": row.id, "suspect": suspect, "at": now}
            connection.execute(insert(exposures), [{"number": number, **shown_now} for number in marked])
            return len(new)

    def key_counts(self, *, suspect: str | None = None) -> tuple[KeyCount, ...]:
        """How many keys are left, for each set in the order of adding; with a suspect, also how many it has seen."""
        unspent = func.sum(case((keys.c.spent_at.is_(None), 1), else_=0))
        counted = (
            select(sets.c.digest, licensees.c.name, sets.c.num_fingerprints, unspent)
            .select_from(sets.join(keys).outerjoin(licensees))
            .group_by(sets.c.id, sets.c.digest, licensees.c.name, sets.c.num_fingerprints)
            .order_by(sets.c.id)
        )
        by_them = or_(exposures.c.suspect == suspect, exposures.c.suspect.is_(None))
        shown_to_them = (
            select(sets.c.digest, func.count(exposures.c.number.distinct()))
            .select_from(exposures.join(sets, sets.c.id == exposures.c.set_id))
            .where(by_them)
            .group_by(sets.c.digest)
        )
        seen = {} if suspect is None else dict(self._rows(shown_to_them))
        return tuple(
            KeyCount(digest, licensee, total, left, total - left, None if suspect is None else seen.get(digest, 0))
            for digest, licensee, total, left in self._rows(counted)
        )

    def verifications(self, *, set_digest: str | None = None, suspect: str | None = None) -> tuple[AttemptRecord, ...]:
        """All attempts in the order of their start, or those of one set, or on one suspect."""
        found = _ATTEMPTS
        if set_digest is not None:
            found = found.where(sets.c.digest == set_digest)
        if suspect is not None:
            found = found.where(attempts.c.suspect == suspect)
        return tuple(AttemptRecord(*row) for row in self._rows(found.order_by(attempts.c.started_at, attempts.c.id)))

    def verification(self, attempt_id: str) -> tuple[AttemptRecord, tuple[int, ...], dict[str, Any] | None]:
        """One attempt, the numbers of its keys in the order of showing, and its report if it has ended."""
        numbers = select(exposures.c.number).where(exposures.c.attempt_id == attempt_id).order_by(exposures.c.id)
        with self._reading() as connection:
            row = connection.execute(_ATTEMPTS.where(attempts.c.id == attempt_id)).one_or_none()
            if row is None:
                raise InvalidArgumentError(
                    f"attempt {attempt_id!r} is not in this registry: oml-fast registry verifications lists them."
                )
            report = connection.scalar(select(attempts.c.report).where(attempts.c.id == attempt_id))
            shown_numbers = tuple(connection.scalars(numbers))
        return AttemptRecord(*row), shown_numbers, None if report is None else json.loads(report)

    def _set(self, connection: Connection, digest: str) -> Row[Any]:
        row = connection.execute(select(sets).where(sets.c.digest == digest)).one_or_none()
        if row is None:
            raise InvalidArgumentError(f"the set {digest} is not in the registry: add it first, with {ADD_SET}.")
        return row

    def _rows(self, query: Select[*tuple[Any, ...]]) -> Sequence[Any]:
        with self._reading() as connection:
            return connection.execute(query).all()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with explained(self._url), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with explained(self._url), self._writer.begin() as connection:
            yield connection
