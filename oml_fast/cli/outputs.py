"""What a command may write to: never over what it reads, nor over a file that the same command would not have made."""

from __future__ import annotations

import argparse
import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError
from .attempts import answers_path

_WRITTEN = ("out", "html", "timestamp_request")  # options that name a file to be written


def require_outputs(options: argparse.Namespace) -> None:
    """InvalidArgumentError where a file that an option names as output is there and must not be written over.

    Either another option names it, or it is not what this command wrote before.
    """
    given = vars(options)
    for name in _WRITTEN:
        out = given.get(name)
        if not isinstance(out, Path) or not out.exists() or out.is_dir():
            continue
        option = _option(name)
        if not out.is_file():
            raise InvalidArgumentError(f"{option} {out} is no file: choose another {option}; --json prints the result.")
        known = _RECOGNISED.get((options.command_name, name), _never)
        own = known(out)
        for other in [each for each in given if each not in _WRITTEN]:
            values = given[other] if isinstance(given[other], list) else [given[other]]
            if any(_names(value, out.resolve(), within=not own) for value in values):
                raise InvalidArgumentError(
                    f"{option} {out} would overwrite what {_option(other)} names. Nothing was changed: choose another "
                    f"{option}."
                )
        if not own and (options.command_name, name) in _RECOGNISED:
            raise InvalidArgumentError(
                f"{option} {out} is there, and is nothing that this command may overwrite. Nothing was changed: choose "
                f"another {option}."
            )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _names(value: Any, file: Path, *, within: bool) -> bool:
    """Whether an option's value is this file or, with `within` and where the option is a path, a folder around it."""
    if not isinstance(value, str | Path) or not os.path.lexists(value):
        return False
    place = Path(value).resolve()
    return place == file or (within and isinstance(value, Path) and place in file.parents)


def _is_report(out: Path) -> bool:
    """A report, or a result of many pairs, with its answers: the journal tells whether they are this verification's."""
    found = _object(out).keys()
    one = "verification" in found and answers_path(out).exists()
    return one or ("pairs" in found and "identified" not in found and answers_path(out, 0).exists())


def _is_identified(out: Path) -> bool:
    return {"pairs", "identified"} <= _object(out).keys() and answers_path(out, 0).exists()


def _is_page(html: Path) -> bool:
    return b"<title>Verification report: " in _beginning(html)


def _is_utility(out: Path) -> bool:
    return {"base", "model", "texts", "tasks"} <= _object(out).keys()


def _is_exported(out: Path) -> bool:
    """A JWK set, or a signed list of keys, whose type stands in its first part."""
    from ..permission.key_list import TYPE

    if _object(out).keys() == {"keys"}:
        return True
    header = _beginning(out).split(b".")[0]
    try:
        return TYPE.encode() in base64.urlsafe_b64decode(header + b"=" * (-len(header) % 4))
    except ValueError:
        return False


def _never(_: Path) -> bool:
    return False


# For each command and option that name a file, and not a folder: whether a file there is the command's own, to be
# written anew. Commands that are not here refuse every existing file themselves.
_RECOGNISED: dict[tuple[str, str], Callable[[Path], bool]] = {
    ("verify", "out"): _is_report,
    ("verify", "html"): _is_page,
    ("identify", "out"): _is_identified,
    ("report show", "html"): _is_page,
    ("evaluate utility", "out"): _is_utility,
    ("permission export", "out"): _is_exported,
    ("commit open", "out"): _never,
    ("commit stamp", "timestamp_request"): _never,
}


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError:
        return b""


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, an empty one where it holds none."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
