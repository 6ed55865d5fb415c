"""The list of keys as a file: a running server sees a new one within a second, and two who change it lose nothing.

The file is looked at, by its modification time, size and inode, at most every half second; it is read only when one of
them differs. Whatever is wrong with it refuses everything (KeyListError) until it is mended: a server that went on with
the old list would not see revocations.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from ..errors import InvalidArgumentError, KeyListError, OmlError
from ..files import cannot_write, write_atomic
from ..signing import SigningKey, VerificationKey
from .key_list import DAYS, MOST_CHARACTERS, KeyList, list_digest, new_key_list, read_key_list

SECONDS_BETWEEN_LOOKS = 0.5


class KeySource(Protocol):
    """Where a checker has the list from."""

    def current(self, now: float) -> KeyList:
        """The newest list. May read a file; KeyListError where there is none that counts."""
        ...

    def recent(self, now: float) -> KeyList | None:
        """The newest list where that is known without reading anything, else None. KeyListError as `current`."""
        ...


class Versions(Protocol):
    """Remembers the highest version of a list (`stores.Store`)."""

    def remember_list(self, owner: str, version: int, digest: str) -> None:
        """KeyListError where a higher version, or another list of this one, was remembered before."""
        ...


class FixedKeys:
    """A list that is at hand, and never changes."""

    def __init__(self, keys: KeyList) -> None:
        self._keys = keys

    def current(self, now: float) -> KeyList:
        self._keys.require_current(now)
        return self._keys

    recent = current


class KeyFile:
    """The list in a file, signed by `owner`; `versions` remembers what was seen, also before this process.

    `monotonic` gives the seconds by which looks are spaced.
    """

    def __init__(
        self,
        path: str | Path,
        owner: VerificationKey,
        versions: Versions,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = Path(path)
        self._owner = owner
        self._versions = versions
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._looked = float("-inf")
        self._state: tuple[int, int, int] | None = None
        self._found: KeyList | KeyListError = KeyListError("the list of keys was not read yet.")

    def current(self, now: float) -> KeyList:
        with self._lock:
            if self._monotonic() - self._looked >= SECONDS_BETWEEN_LOOKS:
                self._look()
            return _usable(self._found, now)

    def recent(self, now: float) -> KeyList | None:
        if self._monotonic() - self._looked >= SECONDS_BETWEEN_LOOKS:
            return None
        return _usable(self._found, now)

    def _look(self) -> None:
        """Read the file where it is another one than before. `_looked` is set last, for `recent` takes no lock."""
        looked = self._monotonic()  # of the time before: a change during the look is seen at the next one
        try:
            state = _state(os.stat(self._path))
            if state != self._state:
                self._state = None
                self._found, self._state = self._read()
        except OSError as error:
            self._state = None
            self._found = KeyListError(f"cannot read the list of keys {self._path}: {error.strerror}.")
        except KeyListError as error:
            self._state = None
            self._found = error
        self._looked = looked

    def _read(self) -> tuple[KeyList, tuple[int, int, int]]:
        with self._path.open("rb") as file:
            state = _state(os.fstat(file.fileno()))
            text = _text(file.read(MOST_CHARACTERS + 2))
        keys = read_key_list(text, self._owner)
        self._versions.remember_list(self._owner.kid, keys.version, list_digest(text))
        return keys, state


def read_key_file(path: str | Path, owner: VerificationKey) -> KeyList:
    """The list in a file, whether it has expired or not. KeyListError where there is none of this owner."""
    try:
        with Path(path).open("rb") as file:
            return read_key_list(_text(file.read(MOST_CHARACTERS + 2)), owner)
    except OSError as error:
        raise KeyListError(f"cannot read the list of keys {path}: {error.strerror}.") from error


def change_key_file(
    path: str | Path,
    owner: SigningKey,
    change: Callable[[KeyList], KeyList],
    *,
    now: float,
    days: float = DAYS,
    issuer: str | None = None,
) -> KeyList:
    """Replace the list in a file by its next version, whole; who changes it at the same time waits.

    `issuer` begins a new list where there is no file; it must be the list's own where there is one.
    """
    path = Path(path)
    with _locked(path):
        if path.exists():
            before = read_key_file(path, owner.verification_key)
            if issuer not in (None, before.issuer):
                raise InvalidArgumentError(f"{path} is the list of {before.issuer!r}: give that --issuer, or none.")
        elif issuer is None:
            raise InvalidArgumentError(
                f"there is no list of keys at {path}: begin one with oml-fast permission keygen."
            )
        else:
            before = new_key_list(issuer)
        text = change(before).signed(owner, now, days)
        write_atomic(path, text + "\n")
        return read_key_list(text, owner.verification_key)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A lock of its own file, for the list's is replaced."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("w")
    except OSError as error:
        raise cannot_write(path, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise OmlError(f"cannot lock {path}: {error.strerror}. Keep the list on a local disk.") from error
        yield


def _usable(found: KeyList | KeyListError, now: float) -> KeyList:
    if isinstance(found, KeyListError):
        raise KeyListError(str(found))
    found.require_current(now)
    return found


def _state(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _text(content: bytes) -> str:
    return content.decode("ascii", "replace").strip()
