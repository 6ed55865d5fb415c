"""What runs the tests' own scripts leaves no process behind."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import scripts


def test_what_a_script_says_is_read(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    assert scripts.said_by(script, "a", "b") == ["a", "b"]


def test_a_script_that_warns_is_a_failure(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import warnings\nwarnings.warn('old')\nprint(1)\n")
    with pytest.raises(AssertionError, match="UserWarning: old"):
        scripts.said_by(script)


def test_processes_that_hang_are_killed_with_all_that_they_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts, "SECONDS", 3)
    script, pids = tmp_path / "script.py", tmp_path / "pids"
    script.write_text(
        f"import os, time\nos.fork()\nwith open({str(pids)!r}, 'a') as file:\n    print(os.getpid(), file=file)\n"
        "time.sleep(600)\n"
    )
    started = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        scripts.said_by(script)
    assert time.monotonic() - started < 30
    found = [int(line) for line in pids.read_text().splitlines()]
    assert len(found) == 2
    for pid in found:
        assert pid != os.getpid()
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
