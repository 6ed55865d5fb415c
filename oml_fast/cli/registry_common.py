"""What the registry's commands share: which registry, which set, columns of text."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgumentError

if TYPE_CHECKING:
    from ..registry import Registry

SHORT = 16  # characters of a digest that text shows; enough to name a set by


def add_registry_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--registry", metavar="PATH", help="SQLite file, or URL of PostgreSQL (default: what OML_FAST_REGISTRY names)"
    )


def add_set_option(parser: argparse.ArgumentParser, *, required: bool = False, what: str = "only this set") -> None:
    parser.add_argument("--set", required=required, metavar="DIGEST", help=f"{what}: its digest, or how that begins")


def where(options: argparse.Namespace) -> str:
    """The path or URL of the registry. InvalidArgumentError where none is named."""
    from .. import settings

    named = options.registry or settings.registry_url()
    if not named:
        raise InvalidArgumentError("no registry is named: give --registry PATH, or set OML_FAST_REGISTRY.")
    return str(named)


def open_registry(options: argparse.Namespace, *, create: bool = False) -> Registry:
    """The registry named; only commands that begin one make it, so that a misspelt path is told."""
    from ..registry import Registry

    return Registry(where(options), create=create)


def chosen_set(registry: Registry, options: argparse.Namespace) -> str | None:
    """The whole digest of the set that `--set` names; None where it names none."""
    return None if options.set is None else registry.find_set(options.set).digest


def plain(records: Sequence[Any]) -> list[dict[str, Any]]:
    """Records as JSON objects."""
    return [asdict(record) for record in records]


def columns(head: Sequence[str], rows: Sequence[Sequence[object]], none: str) -> str:
    """Rows below a head, each column as wide as its widest cell; `none` where there are no rows."""
    if not rows:
        return none
    cells = [list(head), *(["-" if cell is None else str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(head))]
    padded = [[f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)] for row in cells]
    return "\n".join("  ".join(row).rstrip() for row in padded)
