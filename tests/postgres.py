"""A PostgreSQL server of the tests' own: a cluster in a temporary folder, a free port on loopback, gone afterwards."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

DEBIAN = Path("/usr/lib/postgresql")  # Debian keeps initdb and pg_ctl off the PATH, in a folder for each version
USER = "oml"
STARTS = 3  # another process may take the free port before the server does


def find_binaries() -> Path | None:
    """The folder with initdb and pg_ctl: of the PATH, or Debian's newest; None where there is no server."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = [path.parent for path in DEBIAN.glob("*/bin/initdb") if path.parent.parent.name.isdigit()]
    return max(versions, key=lambda path: int(path.parent.name), default=None)


@contextmanager
def running_server(binaries: Path) -> Iterator[str]:
    """Start a server and yield the URL, with its password, of a database to connect to; stopped at the end.

    PostgreSQL refuses to run as root: then it runs as the user postgres, which Debian's package makes.
    """
    # Not below pytest's folder, which only its own user can enter.
    with tempfile.TemporaryDirectory(prefix="oml-postgres-") as name:
        folder, password = Path(name), secrets.token_hex(16)
        (folder / "password").write_text(password)
        if os.geteuid() == 0:
            for path in (folder, folder / "password"):
                shutil.chown(path, "postgres", "postgres")
        data = ["-D", str(folder / "data")]
        _run(folder, [binaries / "initdb", *data, "-U", USER, "-A", "scram-sha-256", "--pwfile", folder / "password"])
        port = _start(folder, binaries / "pg_ctl", data)
        try:
            yield f"postgresql://{USER}:{password}@127.0.0.1:{port}/postgres"
        finally:
            _run(folder, [binaries / "pg_ctl", *data, "-m", "immediate", "-w", "stop"])


def fresh_database(server: str) -> str:
    """The URL of a new, empty database on the server."""
    import psycopg

    name = f"t{secrets.token_hex(8)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return f"{server.rpartition('/')[0]}/{name}"


def _start(folder: Path, pg_ctl: Path, data: Sequence[str]) -> int:
    """Start the server and wait until it answers: its port."""
    for attempt in range(STARTS):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        # What these tests write need not survive a power cut.
        settings = f"-p {port} -h 127.0.0.1 -F -c unix_socket_directories="
        try:
            _run(folder, [pg_ctl, *data, "-l", folder / "log", "-o", settings, "-w", "-t", "60", "start"])
        except RuntimeError:
            if attempt == STARTS - 1:
                raise
        else:
            return port
    raise AssertionError("unreachable")


def _run(folder: Path, command: Sequence[str | Path]) -> None:
    """Run as a user that PostgreSQL accepts. Output goes to a file: the server would hold a pipe open."""
    user = "postgres" if os.geteuid() == 0 else None
    said = folder / "said"
    with said.open("w") as output:
        done = subprocess.run(
            command,
            cwd=folder,
            user=user,
            group=user,
            extra_groups=[] if user else None,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            stdout=output,
            stderr=output,
            timeout=120,
        )
    if done.returncode:
        logs = [path.read_text() for path in (said, folder / "log") if path.exists()]
        raise RuntimeError(f"{Path(command[0]).name} failed: {' '.join(logs).strip()[-2000:]}")
