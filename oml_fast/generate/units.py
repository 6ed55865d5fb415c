"""Work in numbered units, each kept as soon as it is done: a run that is killed goes on where it was.

The file beside the output is one header line and one JSON line per finished unit. A line that was cut by a kill is
dropped and its unit done again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import FingerprintFormatError
from ..files import SECRET_MODE, cannot_write

_MANY = 3  # how many differing settings an error names


class UnitFile:
    """The finished units of one run, on disk at `path` (None: in memory only)."""

    def __init__(self, path: Path | None, header: dict[str, Any]) -> None:
        self._path = path
        self.units: list[Any] = []
        if path is None:
            return
        if path.exists():
            self.units = list(self._read(path, header))
        self._rewrite(path, header)

    def append(self, unit: Any) -> None:
        """Keep one more unit; it is on disk when this returns. Raises OmlError when the disk is full."""
        self.units.append(unit)
        if self._path is not None:
            self._write(self._path, "a", [unit])

    def remove(self) -> None:
        """Forget the units, once the whole output stands."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _read(self, path: Path, header: dict[str, Any]) -> Iterator[Any]:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        try:
            found = json.loads(lines[0] if lines else "")
        except json.JSONDecodeError:
            return  # killed while writing the very first line: nothing is lost by starting again
        wanted = json.loads(json.dumps(header))
        found = found if isinstance(found, dict) else {}
        if found != wanted:
            differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))[:_MANY]
            raise FingerprintFormatError(
                f"{path} holds an unfinished run with another {', '.join(differing)}: repeat that run's options to "
                "go on with it, or remove the file to start again."
            )
        for line in lines[1:]:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return

    def _rewrite(self, path: Path, header: dict[str, Any]) -> None:
        temporary = path.with_name(f"{path.name}.new")
        self._write(temporary, "w", [header, *self.units])
        os.replace(temporary, path)

    def _write(self, path: Path, mode: str, values: list[Any]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, mode, encoding="utf-8", opener=_private) as file:
                file.writelines(json.dumps(value) + "\n" for value in values)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(path, error) from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, SECRET_MODE)
