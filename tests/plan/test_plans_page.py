"""docs/planning.md shows what `oml-fast plan` says today."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SAME = "import plans; assert plans.document() == plans.PAGE.read_text(encoding='utf-8'), 'run python bench/plans.py'"


def test_the_page_is_up_to_date() -> None:
    run = subprocess.run(
        [sys.executable, "-c", SAME],
        cwd=ROOT / "bench",
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
