"""Registries for tests, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from oml_fast.registry import Registry, upgrade

NOON = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def empty_place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a registry can be made: a test with it runs on both."""
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return str(tmp_path / "registry.sqlite")


@pytest.fixture
def place(empty_place: str) -> str:
    """Where a new registry is, or is made when it is opened."""
    if "://" in empty_place:
        upgrade(empty_place)
    return empty_place


@pytest.fixture
def registry(place: str) -> Iterator[Registry]:
    """A new registry, at noon."""
    with Registry(place, clock=lambda: NOON) as registry:
        yield registry
