"""Writing so that nothing is ever half-written: whole files by rename, whole folders by rename."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import InvalidArgumentError, OmlError

SECRET_MODE = 0o600
PUBLIC_MODE = 0o644


def write_atomic(path: str | Path, content: str | bytes, mode: int = PUBLIC_MODE) -> None:
    """Write `content` to `path` whole or not at all: a temporary file beside it, fsync, rename.

    Raises OmlError when the disk is full or the folder cannot be written; `path` is then as it was.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def write_json(path: str | Path, value: Any, mode: int = PUBLIC_MODE) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", mode)


def require_writable(path: str | Path) -> None:
    """Raise OmlError now where writing `path` would fail later. Makes the folder that it lies in."""
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent):
            pass
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> OmlError:
    reason = error.strerror or str(error)
    return OmlError(f"cannot write {path}: {reason}. Nothing there was changed; free space or choose another --out.")


def read_text(path: str | Path, what: str) -> str:
    """Read a UTF-8 file; `what` names it in the error (InvalidArgumentError)."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{what} {path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from error
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {what} {path}: {error.strerror}.") from error


def require_new_folder(path: str | Path, option: str = "--out") -> Path:
    """The path, if nothing would be lost by making a folder there; otherwise InvalidArgumentError."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InvalidArgumentError(f"{path} already exists and is not empty: choose another {option}.")
    return path


@contextlib.contextmanager
def claimed_folder(path: str | Path) -> Iterator[Path]:
    """Hold `path` for this process while the folder is being made; `new_folder` in the block may put it there.

    Raises InvalidArgumentError where it is not empty, or another process holds it. An empty folder is all that a kill
    leaves behind, and nothing bars the next run from taking it.
    """
    path = require_new_folder(path)
    if path.is_symlink() or os.path.ismount(path):
        raise InvalidArgumentError(f"{path} is a link or a mount, which no new folder can replace: name one below it.")
    ours = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidArgumentError(
                f"another process is at work on {path}: wait for it, or choose another --out."
            ) from error
        except OSError:
            pass  # a file system without locks
        try:
            yield path
        except BaseException:
            if ours:
                with contextlib.suppress(OSError):
                    path.rmdir()
            raise
    finally:
        os.close(descriptor)


def require_space(path: str | Path, needed: int) -> None:
    """Raise OmlError where fewer than `needed` bytes are free on the disk that `path` will be on."""
    path = Path(path)
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OmlError(
            f"cannot write {path}: it takes {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free. Free space, "
            "or choose another --out."
        )


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends well, and vanishes when it does not."""
    path = require_new_folder(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            path.rmdir()
        os.replace(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise
