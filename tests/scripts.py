"""Runs the tests' own scripts, whose processes fork."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

SECONDS = 400  # several times what a script takes on a busy machine


def said_by(script: Path, *arguments: str) -> Any:
    """What a script prints as JSON. It and all that it started have ended then: they share its output, which is read
    to its end. Where that takes too long, all of them are killed, and it is an error."""
    command = [sys.executable, "-W", "error", script, *arguments]
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = started.communicate(timeout=SECONDS)
    finally:
        if started.returncode is None:
            os.killpg(started.pid, signal.SIGKILL)
            started.communicate()
    assert (started.returncode, err) == (0, ""), err
    return json.loads(out)
