"""The server that tests marked `postgres` are given."""

from __future__ import annotations

from pathlib import Path

import postgres
import pytest


@pytest.mark.postgres
def test_every_test_gets_an_empty_database_of_its_own(postgres_server: str, postgres_url: str) -> None:
    import psycopg

    other = postgres.fresh_database(postgres_server)
    assert other != postgres_url
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE t (x int)")
    with psycopg.connect(other) as connection:
        assert connection.execute("SELECT to_regclass('t')").fetchone() == (None,)


@pytest.mark.postgres
def test_it_wants_the_password(postgres_url: str) -> None:
    import psycopg

    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(postgres_url.replace(f"{postgres.USER}:", f"{postgres.USER}:not-"))


def test_the_newest_of_debians_versions_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(postgres, "DEBIAN", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert postgres.find_binaries() is None
    for version in ("9", "17", "15"):
        (tmp_path / version / "bin").mkdir(parents=True)
        (tmp_path / version / "bin" / "initdb").touch()
    assert postgres.find_binaries() == tmp_path / "17" / "bin"
