"""A store in an SQLite file (WAL), for all processes of one host: the default.

What is committed survives the death of the process, whatever kills it, because the operating system has it by then.
With `synchronous = NORMAL` it may not survive the death of the machine. So the file keeps the boot in which it was
written, and after another boot everything issued before is refused, as by a new file. With `durable=True` every commit
waits for the disk (`FULL`): slower by that, and a reboot costs no token.

The file is the record of what is spent: one that is deleted begins anew, which refuses what was issued before; one that
is restored from a backup would let tokens through again, and must not be.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InvalidArgumentError, KeyListError, ReplayedNonce, StoreUnavailableError
from ..files import SECRET_MODE
from .permission import SKEW, Limits
from .stores import FORGET_AT_ONCE, Amount, Earlier, Nonce, Usage, granted, older_list

BUSY_SECONDS = 3.0
FORMAT = 1
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_TABLES = """
CREATE TABLE IF NOT EXISTS nonces (
    issuer TEXT NOT NULL, nonce TEXT NOT NULL, body TEXT, spent_at REAL NOT NULL,
    finished INTEGER NOT NULL DEFAULT 0, forget_at INTEGER NOT NULL, PRIMARY KEY (issuer, nonce)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS nonces_forget_at ON nonces (forget_at);
CREATE TABLE IF NOT EXISTS answers (
    issuer TEXT NOT NULL, nonce TEXT NOT NULL, kept_at REAL NOT NULL, answer BLOB NOT NULL,
    PRIMARY KEY (issuer, nonce)
);
CREATE TABLE IF NOT EXISTS quotas (
    issuer TEXT NOT NULL, nonce TEXT NOT NULL, requests INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    forget_at INTEGER NOT NULL, PRIMARY KEY (issuer, nonce)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS quotas_forget_at ON quotas (forget_at);
CREATE TABLE IF NOT EXISTS lists (owner TEXT PRIMARY KEY, version INTEGER NOT NULL, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state (
    one INTEGER PRIMARY KEY CHECK (one = 1), format INTEGER NOT NULL, boot TEXT NOT NULL,
    began REAL NOT NULL, forgotten REAL NOT NULL
);
"""
_SPEND = (
    "INSERT INTO nonces (issuer, nonce, body, spent_at, forget_at) SELECT ?, ?, ?, ?, ? FROM state "
    "WHERE began < ? AND forgotten < ? ON CONFLICT (issuer, nonce) DO NOTHING"  # as `Nonce.require_known` has it
)
_SPENT = (
    "SELECT body, spent_at, finished, answer FROM nonces LEFT JOIN answers USING (issuer, nonce) "
    "WHERE issuer = ? AND nonce = ?"
)
_TAKEN = "SELECT requests, output_tokens FROM quotas WHERE issuer = ? AND nonce = ?"
_TAKE = (
    "INSERT INTO quotas (issuer, nonce, requests, output_tokens, forget_at) VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT (issuer, nonce) DO UPDATE SET requests = excluded.requests, output_tokens = excluded.output_tokens"
)
_FORGET = [
    (
        f"SELECT issuer, nonce, forget_at FROM {table} WHERE forget_at <= ? ORDER BY forget_at LIMIT ?",  # noqa: S608
        f"DELETE FROM {table} WHERE issuer = ? AND nonce = ?",  # noqa: S608
    )
    for table in ("nonces", "quotas")
]


class SqliteStore:
    """See `stores.Store`. Made where there is none, mode 0600; refuses a file that others can read.

    `now` is when it is opened, which counts where the file is new or the machine was started since. Raises
    InvalidArgumentError where the path can be no store, StoreUnavailableError where it cannot be used now. Safe for
    threads, and after a fork.
    """

    waits = True

    def __init__(self, path: str | Path, *, durable: bool = False, now: float | None = None) -> None:
        self._path = Path(path).expanduser()
        self._durable = durable
        self._opened = time.time() if now is None else now
        self._lock = threading.Lock()
        self._left_to_parents: list[sqlite3.Connection] = []
        self._open()

    @property
    def name(self) -> str:
        return f"SQLite {self._path}"

    def spend(self, nonce: Nonce, body: str | None, now: float, retry_seconds: float) -> Earlier | None:
        key = (nonce.issuer, nonce.nonce)
        with self._using() as connection:  # in one statement, not four
            row = (*key, body, now, nonce.forget_at)
            if connection.execute(_SPEND, (*row, nonce.issued_at, nonce.forget_at)).rowcount == 1:
                return None
        with self._writing() as connection:
            self._require_known(connection, nonce)
            before, at, finished, answer = connection.execute(_SPENT, key).fetchone()
            if body is None or body != before or not 0 <= now - at <= retry_seconds:
                raise ReplayedNonce("its nonce is spent.")
            return Earlier("finished" if finished else "started", answer)

    def finish(self, nonce: Nonce, answer: bytes | None, now: float) -> None:
        key = (nonce.issuer, nonce.nonce)
        with self._writing() as connection:
            connection.execute("UPDATE nonces SET finished = 1 WHERE issuer = ? AND nonce = ?", key)
            if answer is not None:
                connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", (*key, now, answer))

    def lease(self, nonce: Nonce, limits: Limits, need: Amount, now: float) -> Amount:
        key = (nonce.issuer, nonce.nonce)
        with self._writing() as connection:
            self._require_known(connection, nonce)
            taken = Amount(*(connection.execute(_TAKEN, key).fetchone() or (0, 0)))
            amount = granted(limits, taken, need)
            new = taken + amount
            connection.execute(_TAKE, (*key, new.requests, new.output_tokens, nonce.forget_at))
            return amount

    def give_back(self, nonce: Nonce, amount: Amount) -> None:
        change = (
            "UPDATE quotas SET requests = max(0, requests - ?), output_tokens = max(0, output_tokens - ?) "
            "WHERE issuer = ? AND nonce = ?"
        )
        with self._writing() as connection:
            connection.execute(change, (amount.requests, amount.output_tokens, nonce.issuer, nonce.nonce))

    def usage(self, nonce: Nonce) -> Usage:
        key = (nonce.issuer, nonce.nonce)
        with self._writing() as connection:
            self._require_known(connection, nonce)
            spent = connection.execute(_SPENT, key).fetchone() is not None
            return Usage(spent, Amount(*(connection.execute(_TAKEN, key).fetchone() or (0, 0))))

    def remember_list(self, owner: str, version: int, digest: str) -> None:
        with self._writing() as connection:
            found = connection.execute("SELECT version, digest FROM lists WHERE owner = ?", (owner,)).fetchone()
            seen, known = found or (0, "")
            if version < seen or (version == seen and digest != known):
                raise KeyListError(older_list(version, seen))
            if version > seen:
                connection.execute("INSERT OR REPLACE INTO lists VALUES (?, ?, ?)", (owner, version, digest))

    def clean_up(self, now: float, answers_before: float) -> None:
        with self._writing() as connection:
            connection.execute("DELETE FROM answers WHERE kept_at < ?", (answers_before,))
            for select, delete in _FORGET:
                rows = connection.execute(select, (now, FORGET_AT_ONCE)).fetchall()
                if rows:
                    connection.executemany(delete, [row[:2] for row in rows])
                    connection.execute("UPDATE state SET forgotten = max(forgotten, ?)", (rows[-1][2],))

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _require_known(self, connection: sqlite3.Connection, nonce: Nonce) -> None:
        began, forgotten = connection.execute("SELECT began, forgotten FROM state").fetchone()
        nonce.require_known(began, forgotten)

    def _open(self) -> None:
        try:
            self._connection = _connect(self._path)
            self._pid, self._inode = os.getpid(), self._path.stat().st_ino
            with self._writing() as connection:
                self._begin(connection)
            _set_pace(self._connection, self._durable)
        except sqlite3.Error as error:
            raise self._unavailable(error) from error
        except OSError as error:
            raise StoreUnavailableError(f"cannot open the store {self._path}: {error.strerror}.") from error

    def _begin(self, connection: sqlite3.Connection) -> None:
        """Make the tables; begin anew in a new file, and after a reboot that may have lost what was spent."""
        boot = "" if self._durable else _boot()
        for statement in _TABLES.split(";\n"):
            connection.execute(statement)
        row = connection.execute("SELECT format, boot FROM state").fetchone()
        began = self._opened + SKEW
        if row is None:
            connection.execute("INSERT INTO state VALUES (1, ?, ?, ?, 0)", (FORMAT, boot, began))
        elif row[0] != FORMAT:
            raise InvalidArgumentError(
                f"{self._path} is a store of another oml_fast (format {row[0]}): name a new one."
            )
        elif row[1] not in ("", _boot()):
            connection.execute("UPDATE state SET boot = ?, began = max(began, ?)", (boot, began))
        elif boot:
            connection.execute("UPDATE state SET boot = ?", (boot,))

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time; each statement is a transaction."""
        with self._lock:
            try:
                yield self._ready()
            except sqlite3.Error as error:
                raise self._unavailable(error) from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction under the file's write lock; committed, or as if it had never been."""
        with self._lock:
            try:
                connection = self._ready()
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    with contextlib.suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise self._unavailable(error) from error

    def _ready(self) -> sqlite3.Connection:
        if self._pid != os.getpid():
            self._reopen()
        self._require_same_file()
        return self._connection

    def _reopen(self) -> None:
        """After a fork: SQLite's connections belong to the process that made them, and closing one would harm it."""
        self._left_to_parents.append(self._connection)
        self._connection = _connect(self._path)
        _set_pace(self._connection, self._durable)
        self._pid = os.getpid()

    def _require_same_file(self) -> None:
        """A file that was removed or replaced would go on taking nonces that nobody else sees."""
        try:
            same = os.stat(self._path).st_ino == self._inode
        except OSError:
            same = False
        if not same:
            raise StoreUnavailableError(f"the store {self._path} was removed or replaced: restart the server.")

    def _unavailable(self, error: sqlite3.Error) -> StoreUnavailableError:
        reason = str(error).rstrip(".")
        return StoreUnavailableError(
            f"the store {self._path} cannot be used: {reason}. Check that the disk has space and who holds the file."
        )


def _connect(path: Path) -> sqlite3.Connection:
    if str(path).strip() in ("", ".", ":memory:"):
        raise InvalidArgumentError(f"{str(path)!r} is no place for a store: name a file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, SECRET_MODE))
    if not path.is_file():
        raise InvalidArgumentError(f"{path} is no file: name a file for the store.")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise InvalidArgumentError(f"the store {path} can be used by others (mode {mode:04o}): chmod 600 {path}")
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _write_ahead(connection)
        connection.execute("PRAGMA synchronous = FULL")  # until the boot is on the disk, before the first nonce
        connection.execute("PRAGMA secure_delete = ON")  # an answer that is forgotten is gone from the file
    except BaseException:
        connection.close()
        raise
    return connection


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch a new file to write-ahead logging. Where several processes do, SQLite refuses all but one at once."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(0.01)


def _set_pace(connection: sqlite3.Connection, durable: bool) -> None:
    connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")


def _boot() -> str:
    """Names this run of the machine; where the system has no name for it, every opening counts as another run."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return os.urandom(16).hex()
