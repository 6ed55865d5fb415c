"""Stores for tests: in memory, in a file, and in a registry on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from granting import NOW, opened

from oml_fast.permission import MemoryStore, Store
from oml_fast.registry import upgrade


@pytest.fixture(params=["file", "registry", pytest.param("postgres", marks=pytest.mark.postgres)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store is that processes share; `opened` opens it. Those who took from it began at NOW - 500."""
    where = str(tmp_path / request.param)
    if request.param == "postgres":
        where = str(request.getfixturevalue("postgres_url"))
    if request.param != "file":
        upgrade(where)
    opened(where, now=NOW - 500).close()
    return where


@pytest.fixture(params=["memory", "file", "registry", pytest.param("postgres", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store that began at NOW - 500."""
    if request.param == "memory":
        yield MemoryStore(now=NOW - 500)
        return
    where = (
        str(request.getfixturevalue("postgres_url")) if request.param == "postgres" else str(tmp_path / request.param)
    )
    if request.param != "file":
        upgrade(where)
    made = opened(where, now=NOW - 500)
    yield made
    made.close()
