"""Work in numbered units, each kept as soon as it is done: a run that is killed goes on where it was, and several
processes share one.

Each process appends to a file of its own, which it has locked, and reads the others beside it: one header line, then
one JSON line per finished unit. A line without its end was cut by a kill, or is being written: it does not count.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import FingerprintFormatError, InvalidArgumentError
from ..files import SECRET_MODE, cannot_write

UNIT = 256  # candidates
_PARTS = 4  # units that the first so many candidates are made in: a small set needs no more of them
ALONE = (1, 1)
_MANY = 3  # how many differing settings an error names


def candidates(unit: int) -> range:
    """The numbers of the candidates of a unit."""
    if unit < _PARTS:
        return range(unit * UNIT // _PARTS, (unit + 1) * UNIT // _PARTS)
    first = (unit - _PARTS + 1) * UNIT
    return range(first, first + UNIT)


def unit_files(path: Path) -> list[Path]:
    """The files of unfinished work that are there: `path` and those of shards beside it."""
    name = re.compile(rf"{re.escape(path.stem)}(-\d+-of-\d+)?{re.escape(path.suffix)}")
    return sorted(file for file in path.parent.glob("*") if name.fullmatch(file.name))


class UnitFiles:
    """The finished units of one run in the files of `path` (None: nowhere). `with` or `close` gives the lock back.

    Raises FingerprintFormatError where a file is of another run, and InvalidArgumentError where another process has
    the same shard.
    """

    def __init__(self, path: Path | None, header: dict[str, Any], shard: tuple[int, int] = ALONE) -> None:
        self._path, self._header = path, json.loads(json.dumps(header))
        self._read_to: dict[Path, int] = {}
        self._kept: list[dict[str, Any]] = []  # where there is no file
        if path is None:
            return
        index, count = shard
        self.own = path if count == 1 else path.with_name(f"{path.stem}-{index}-of-{count}{path.suffix}")
        try:
            self.own.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.own, os.O_RDWR | os.O_CREAT | os.O_APPEND, SECRET_MODE)
        except OSError as error:
            raise cannot_write(self.own, error) from error
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> UnitFiles:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back."""
        if self._path is not None and self._file >= 0:
            os.close(self._file)
            self._file = -1

    def fresh(self) -> Iterator[dict[str, Any]]:
        """The units that have come into any of the files since the last call, those appended here too."""
        if self._path is None:
            yield from self._kept
            self._kept = []
            return
        for path in unit_files(self._path):
            yield from self._new_in(path)

    def append(self, unit: dict[str, Any]) -> None:
        """Keep one more unit; it is on disk when this returns. Raises OmlError when the disk is full."""
        if self._path is None:
            self._kept.append(unit)
        else:
            self._write(unit)

    def _begin(self) -> None:
        """Lock our file, read it, and cut off what a kill left without an end."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidArgumentError(
                f"another process is at work on {self.own}: wait for it, or give each process a --shard of its own."
            ) from error
        except OSError:
            pass  # a file system without locks: the same shard twice is then the user's to avoid
        for _ in self._new_in(self.own):
            pass
        try:
            os.ftruncate(self._file, self._read_to.pop(self.own, 0))
        except OSError as error:
            raise cannot_write(self.own, error) from error
        if not os.fstat(self._file).st_size:
            self._write(self._header)

    def _new_in(self, path: Path) -> Iterator[dict[str, Any]]:
        # Not found: another process finished the set meanwhile.
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            file.seek(self._read_to.get(path, 0))
            for line in file:
                value = _whole(line)
                if value is None:
                    return
                if path not in self._read_to:
                    self._require_same(path, value)
                    self._read_to[path] = 0
                else:
                    yield value
                self._read_to[path] += len(line)

    def _require_same(self, path: Path, found: Any) -> None:
        if found != self._header:
            found = found if isinstance(found, dict) else {}
            differing = sorted(key for key in {*found, *self._header} if found.get(key) != self._header.get(key))[
                :_MANY
            ]
            raise FingerprintFormatError(
                f"{path} holds an unfinished run with another {', '.join(differing)}: repeat that run's options to "
                "go on with it, or remove the file to start again."
            )

    def _write(self, value: Any) -> None:
        left = memoryview(json.dumps(value).encode() + b"\n")
        try:
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError as error:
            raise cannot_write(self.own, error) from error


def _whole(line: bytes) -> Any:
    """The value of a line that was written to its end, else None."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
