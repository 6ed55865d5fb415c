"""The settings of a permission gate: a YAML file, named by OML_FAST_PERMISSIONS. There is none that switches it off.

    owner_key: owner.pub                 # the owner's verification key, which signs the list of keys
    keys: keys.jws                       # the list of keys
    store: permissions.sqlite            # nonces and quotas: a file, or the URL of a PostgreSQL registry
    models: {smollm2: 5f0c...}           # each name that requests may ask for, and the digest of that model
    registry: registry.sqlite            # optional: where usage is recorded, a file or a URL
    metrics: 127.0.0.1:9464              # optional: where Prometheus reads counters
    routes: [/v1/chat/completions]       # optional: fewer licensed routes than all
    tell_engine: true                    # whether the body names the licensee, as vLLM's extra argument oml_licensee
    max_body_bytes: 1048576              # of a request
    body_seconds: 30                     # that a client may take to send it
    max_lifetime: 7776000                # seconds from issue to expiry of a token

Paths are relative to the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError
from ..permission import MAX_LIFETIME
from ..settings import read_config
from .routes import LICENSED

VARIABLE = "OML_FAST_PERMISSIONS"
MOST_BODY_BYTES = 1 << 20
BODY_SECONDS = 30.0
_DIGEST = re.compile("[0-9a-f]{64}")
_BIND = re.compile(r"(\[[0-9a-fA-F:]+\]|[0-9A-Za-z.-]+):([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class GateSettings:
    """See the module. `models`: served name -> digest. `metrics`: host and port."""

    owner_key: Path
    keys: Path
    store: str
    models: Mapping[str, str]
    registry: str | None = None
    metrics: tuple[str, int] | None = None
    routes: tuple[str, ...] = tuple(LICENSED)
    tell_engine: bool = True
    max_body_bytes: int = MOST_BODY_BYTES
    body_seconds: float = BODY_SECONDS
    max_lifetime: int = MAX_LIFETIME


def read_gate_settings(path: str | Path | None) -> GateSettings:
    """The settings in a file. InvalidArgumentError names the file, the setting and the way out."""
    if path is None:
        raise InvalidArgumentError(f"{VARIABLE} names no file: set it to the settings of the permission gate.")
    path = Path(path).expanduser()
    values = read_config(path)
    if unknown := sorted(set(values) - set(_READERS)):
        raise InvalidArgumentError(f"{path}: {', '.join(unknown)} is unknown: the settings are {', '.join(_READERS)}.")
    needed = [field.name for field in fields(GateSettings) if field.name not in values and field.name in _NEEDED]
    if needed:
        raise InvalidArgumentError(f"{path} has no {', '.join(needed)}: a gate cannot do without.")
    read: dict[str, Any] = {}
    for name, value in values.items():
        try:
            read[name] = _READERS[name](value, path.parent)
        except _WrongSettingError as error:
            raise InvalidArgumentError(f"{path}: {name} is {error}") from error
    return GateSettings(**read)


class _WrongSettingError(ValueError):
    """What a setting must be."""


def _file(value: Any, folder: Path) -> Path:
    if not isinstance(value, str) or not value:
        raise _WrongSettingError("no file: name one.")
    return folder / Path(value).expanduser()


def _place(value: Any, folder: Path) -> str:
    return value if isinstance(value, str) and "://" in value else str(_file(value, folder))


def _models(value: Any, folder: Path) -> dict[str, str]:
    if (
        not isinstance(value, dict)
        or not value
        or not all(isinstance(name, str) and name for name in value)
        or not all(isinstance(digest, str) and _DIGEST.fullmatch(digest) for digest in value.values())
    ):
        raise _WrongSettingError("no mapping of the names of models to their digests, 64 hex digits each.")
    return dict(value)


def _bind(value: Any, folder: Path) -> tuple[str, int]:
    found = _BIND.fullmatch(value) if isinstance(value, str) else None
    if found is None or not 0 < int(found[2]) < 65536:
        raise _WrongSettingError("no host and port: write them as in 127.0.0.1:9464.")
    return found[1].strip("[]"), int(found[2])


def _routes(value: Any, folder: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(route in LICENSED for route in value):
        raise _WrongSettingError(f"no list of some of {', '.join(LICENSED)}.")
    return tuple(value)


def _flag(value: Any, folder: Path) -> bool:
    if not isinstance(value, bool):
        raise _WrongSettingError("neither true nor false.")
    return value


def _whole(least: int, most: int) -> Callable[[Any, Path], int]:
    def read(value: Any, folder: Path) -> int:
        if type(value) is not int or not least <= value <= most:
            raise _WrongSettingError(f"no whole number from {least:,} to {most:,}.")
        return value

    return read


def _seconds(value: Any, folder: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 3600:
        raise _WrongSettingError("no number of seconds up to 3600.")
    return float(value)


_READERS: dict[str, Callable[[Any, Path], Any]] = {
    "owner_key": _file,
    "keys": _file,
    "store": _place,
    "models": _models,
    "registry": _place,
    "metrics": _bind,
    "routes": _routes,
    "tell_engine": _flag,
    "max_body_bytes": _whole(1024, 1 << 30),
    "body_seconds": _seconds,
    "max_lifetime": _whole(1, MAX_LIFETIME),
}
_NEEDED = ("owner_key", "keys", "store", "models")
