"""Writing sets and their keys: what is refused, and what is changed, inside the caller's transaction."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, Integer, Row, Table, bindparam, insert, literal_column, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ..errors import InvalidArgumentError
from .records import json_digest
from .tables import keys, licensees, models, sets

if TYPE_CHECKING:
    from ..fingerprint import FingerprintSet

LONGEST_NAME = 200
LONGEST_PLACE = 4096  # of a suspect or model: a path, a URL with a model's name


def insert_new(connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless one with its key is there, whoever adds it at the same time. Whether it was new."""
    into = sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)
    one: ColumnElement[int] = literal_column("1", Integer)
    return connection.execute(into.values(values).on_conflict_do_nothing().returning(one)).first() is not None


def store_set(
    connection: Connection, fingerprints: FingerprintSet, licensee: str | None, order: Sequence[int] | None, now: str
) -> Row[Any]:
    """The set's row, locked: a new one with all its keys, or the one that is there, now with its licensee."""
    numbers = [fingerprint.number for fingerprint in fingerprints]
    if not numbers or len(set(numbers)) < len(numbers):
        raise InvalidArgumentError("a set without fingerprints, or with two of one number: generate it again.")
    _require_order(numbers, order)
    asked = list(numbers if order is None else order)
    digest = fingerprints.digest()
    licensee_id = None if licensee is None else _licensee_id(connection, licensee)
    values = {
        "digest": digest,
        "num_fingerprints": len(numbers),
        "base_model": fingerprints.base_model,
        "base_model_digest": fingerprints.base_model_digest,
        "tokenizer_digest": fingerprints.tokenizer_digest,
        "secret_commitment": fingerprints.secret_commitment,
        "order_digest": json_digest(asked),
        "licensee_id": licensee_id,
        "added_at": now,
    }
    new = insert_new(connection, sets, values)
    row = connection.execute(select(sets).where(sets.c.digest == digest).with_for_update(key_share=True)).one()
    if new:
        rows = [{"set_id": row.id, "number": number, "place": place} for place, number in enumerate(asked)]
        connection.execute(insert(keys), rows)
    elif licensee_id is not None and licensee_id != row.licensee_id:
        _give_to(connection, row, licensee_id, str(licensee))
    return row


def place_keys(connection: Connection, row: Row[Any], order: Sequence[int], *, only_unspent: bool = False) -> None:
    """Ask the keys of a locked set in `order` from now on; `order` was validated by `store_set`.

    `only_unspent` refuses another order once a key is spent (InvalidArgumentError).
    """
    digest = json_digest(list(order))
    if digest == row.order_digest:
        return
    if only_unspent and _spent(connection, row.id):
        raise InvalidArgumentError(
            f"keys of the set {row.digest} were asked in another order: give that order, or have those that are left "
            "asked in a commitment's order from now on, with oml-fast registry add-set --secret FILE."
        )
    these = (keys.c.set_id == row.id) & (keys.c.number == bindparam("of_number"))
    places = [{"of_number": number, "to": place} for place, number in enumerate(order)]
    connection.execute(update(keys).where(these).values(place=bindparam("to")), places)
    connection.execute(update(sets).where(sets.c.id == row.id).values(order_digest=digest))


def mark_spent(connection: Connection, set_id: int, numbers: Sequence[int], suspect: str | None, now: str) -> None:
    """Spend keys of a locked set outside any attempt."""
    these = (keys.c.set_id == set_id) & (keys.c.number == bindparam("of_number"))
    if numbers:
        change = update(keys).where(these).values(spent_at=now, suspect=suspect)
        connection.execute(change, [{"of_number": number} for number in numbers])


def require_name(name: str, what: str, longest: int = LONGEST_NAME) -> None:
    """A name of one line, not empty, that carries no password (InvalidArgumentError)."""
    if not name.strip() or not name.isprintable():
        raise InvalidArgumentError(f"{what} cannot be {name!r}: give one line of printable text.")
    if len(name) > longest:
        raise InvalidArgumentError(f"{what} has {len(name)} characters: at most {longest}.")
    if re.search(r"://[^/@\s]*:[^/@\s]*@", name):
        raise InvalidArgumentError(f"{what} holds a password: leave it out, for names are stored and shown.")


def require_digest(digest: str, what: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise InvalidArgumentError(f"{what} cannot be {digest!r}: give 64 hexadecimal digits.")


def _require_order(numbers: Sequence[int], order: Sequence[int] | None) -> None:
    if order is None:
        return
    if missing := sorted(set(numbers) - set(order)):
        raise InvalidArgumentError(f"the order of asking lacks key {missing[0]}: give every number of the set once.")
    if unknown := sorted(set(order) - set(numbers)):
        raise InvalidArgumentError(f"the order of asking names key {unknown[0]}, which the set has not: leave it out.")
    if len(order) > len(numbers):
        raise InvalidArgumentError("the order of asking names a key twice: give every number of the set once.")


def _licensee_id(connection: Connection, name: str) -> int:
    found = connection.scalar(select(licensees.c.id).where(licensees.c.name == name))
    if found is None:
        raise InvalidArgumentError(
            f"the licensee {name!r} is not in the registry: oml-fast registry add-licensee adds one."
        )
    return int(found)


def _give_to(connection: Connection, row: Row[Any], licensee_id: int, name: str) -> None:
    """A set becomes a licensee's only before it is in any model, and never twice."""
    if row.licensee_id is not None:
        other = connection.scalar(select(licensees.c.name).where(licensees.c.id == row.licensee_id))
        raise InvalidArgumentError(
            f"the set {row.digest} belongs to {other!r}, not to {name!r}: generate a set of its own for each licensee."
        )
    embedded = connection.scalar(select(models.c.path).where(models.c.set_id == row.id).limit(1))
    if embedded is not None or _spent(connection, row.id):
        why = f"it is in the model {embedded} already" if embedded is not None else "keys of it are spent already"
        raise InvalidArgumentError(
            f"the set {row.digest} cannot be given to {name!r} now, for {why}: a set is recorded for a licensee before "
            "it is embedded. Generate a new set for them."
        )
    connection.execute(update(sets).where(sets.c.id == row.id).values(licensee_id=licensee_id))


def _spent(connection: Connection, set_id: int) -> bool:
    some = select(keys.c.number).where((keys.c.set_id == set_id) & keys.c.spent_at.is_not(None)).limit(1)
    return connection.scalar(some) is not None
