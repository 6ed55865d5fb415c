"""A process that runs tests again and again, each time in a fork of itself in which the package's part is not loaded.

    mutant_tests.py PART FOLDER ...   a package, and folders that come first on the path of modules

For each line of JSON on its input, {"arguments": of pytest, "seconds": of CPU at most, "bytecode": whether it is
written}, one on its output: the outcome (survived, killed or timeout), the test that failed, and the seconds of CPU.
What the tests import from elsewhere is imported once, before.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Any

import pytest

LONGEST = 600  # seconds on the wall, for tests that wait for ever
HEAVY = (
    *("torch", "transformers", "sqlalchemy", "sqlalchemy.dialects.sqlite", "alembic.command", "jwt", "hypothesis"),
    *("cryptography.hazmat.primitives.asymmetric.ed25519", "cryptography.hazmat.primitives.serialization", "asyncio"),
    *("cryptography.hazmat.primitives.asymmetric.rsa", "joserfc.jws", "safetensors", "tokenizers", "multiprocessing"),
    *("oml_fast.models", "tiny", "hypothesis.strategies", "concurrent.futures", "unittest.mock", "sqlite3"),
)


class FirstFailure:
    """Notes the first test that failed."""

    def __init__(self) -> None:
        self.name = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid


def attempt(arguments: Sequence[str], seconds: int, bytecode: bool) -> dict[str, Any]:
    """Run pytest in a fork with a process group of its own, of which nothing is left afterwards."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            os.close(reader)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # the machine may be busy with other work
            signal.alarm(LONGEST)
            sys.dont_write_bytecode = not bytecode
            silence = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(silence, stream)
            first = FirstFailure()
            code = int(pytest.main(list(arguments), plugins=[first]))
            os.write(writer, json.dumps([code, first.name]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with contextlib.suppress(OSError):  # the child did it already
        os.setpgid(child, child)
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        try:
            _, status, usage = os.wait4(child, 0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        os.set_blocking(reader, False)
        said = pipe.read() or b""
    ended = -os.waitstatus_to_exitcode(status)
    if ended == signal.SIGKILL:
        raise SystemExit("something else killed the tests: is there too little memory?")
    timed_out = ended in (signal.SIGALRM, signal.SIGXCPU)
    code, name = json.loads(said) if said else (1, "the process ended")
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise SystemExit(f"there are no tests in {' '.join(arguments)}.")
    outcome = "timeout" if timed_out else "killed" if code else "survived"
    return {"outcome": outcome, "by": "" if timed_out else name, "cpu": usage.ru_utime + usage.ru_stime}


def stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(0)


def main() -> None:
    signal.signal(signal.SIGTERM, stop)
    part, *folders = sys.argv[1:]
    sys.path[:0] = folders
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    assert not any(name == part or name.startswith(f"{part}.") for name in sys.modules)
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(attempt(**asked)), flush=True)


if __name__ == "__main__":
    main()
