"""Registries for tests, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from oml_fast.registry import Registry, upgrade

NOON = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new registry is: a test with it runs on both."""
    if request.param == "postgres":
        url = str(request.getfixturevalue("postgres_url"))
        upgrade(url)
        return url
    return str(tmp_path / "registry.sqlite")


@pytest.fixture
def registry(place: str) -> Iterator[Registry]:
    """A new registry, at noon."""
    with Registry(place, clock=lambda: NOON) as registry:
        yield registry
