"""A part of a result file replaces itself and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common import Figure
from parts import finish_part


def measured(out: Path, name: str, commit: str, value: str) -> dict[str, Any]:
    finish_part(out, name, {"commit": commit}, [Figure(name, "here", value, "", None, "a command")], {"cases": [value]})
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_parts_are_kept_beside_each_other(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    measured(out, "second", "abc", "1")
    measured(out, "first", "abc", "2")
    found = measured(out, "second", "abc", "3")
    assert [(row["figure"], row["value"]) for row in found["figures"]] == [("first", "2"), ("second", "3")]
    assert {name: part["cases"] for name, part in found["parts"].items()} == {"first": ["2"], "second": ["3"]}


def test_rows_of_another_commit_say_so(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    measured(out, "first", "abc", "1")
    found = measured(out, "second", "def", "2")
    assert [row["setting"] for row in found["figures"]] == ["here; measured at abc", "here"]
    assert found["run"]["commit"] == "def"
    assert measured(out, "first", "def", "1")["figures"][0]["setting"] == "here"


def test_a_result_of_one_command_alone_gives_way(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    out.write_text(json.dumps({"run": {"commit": "abc"}, "figures": [], "cases": []}))
    assert set(measured(out, "first", "abc", "1")) == {"run", "figures", "parts"}
