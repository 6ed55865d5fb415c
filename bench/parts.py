"""A result file that several commands fill, each its own part: one environment cannot measure everything.

{"run": of the last command, "figures": the rows of all parts, "parts": {name: {"run": ..., "figures": ..., details}}}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common import Figure, finish


def finish_part(out: Path, name: str, run: dict[str, Any], figures: Sequence[Figure], details: dict[str, Any]) -> None:
    """As `common.finish`, beside the parts that are kept; their rows say at which commit, where that is another."""
    kept = json.loads(out.read_text()).get("parts", {}) if out.is_file() else {}
    parts = kept | {name: {"run": run, "figures": [asdict(figure) for figure in figures], **details}}
    rows = [row for each in sorted(parts) for row in _rows(parts[each], run["commit"])]
    finish(out, run, rows, {"parts": {each: parts[each] for each in sorted(parts)}})


def _rows(part: dict[str, Any], commit: str) -> list[Figure]:
    rows, own = [Figure(**row) for row in part["figures"]], part["run"]["commit"]
    return rows if own == commit else [replace(row, setting=f"{row.setting}; measured at {own}") for row in rows]
