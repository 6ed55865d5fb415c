"""Mutants: every kind of fault, nothing else changed; a fault is seen, and nothing is left behind."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import mutants as bench
import pytest
from mutating import mutants

SOURCE = '''"""A text with < and 7."""
import re

SKEW: int = 30
_FORM = re.compile("[a-f]{2,4}")
_SQL = "SELECT a FROM b WHERE a <= ? AND b = 1"


def check(token: str, now: float = 0) -> bool:
    """Not 1 + 1."""
    assert now >= 0
    try:
        if not token or token.uses < 1 and now <= SKEW:
            raise ValueError(f"it has {1 + 1}")
        token.uses += max(1, now)
    except KeyError:
        token.last = [each for each in "ab" if each]
    return None if now else token.uses - 1
'''


def changes(kind: str) -> set[tuple[str, str]]:
    return {(each.before, each.after) for each in mutants(SOURCE) if each.kind == kind}


def test_every_kind_of_fault_is_made() -> None:
    assert changes("comparison") == {
        ("token.uses < 1", "token.uses <= 1"),
        ("token.uses < 1", "token.uses >= 1"),
        ("now <= SKEW", "now < SKEW"),
        ("now <= SKEW", "now > SKEW"),
    }
    assert ("not token", "token") in changes("boolean")
    assert ("token.uses < 1 and now <= SKEW", "now <= SKEW") in changes("condition dropped")
    assert ("each", "True") in changes("condition dropped")
    assert ("30", "31") in changes("constant")
    assert ("token.uses - 1", "token.uses + 1") in changes("arithmetic")
    assert changes("raise removed") == {("raise ValueError(f'it has {1 + 1}')", "pass")}
    assert changes("pattern") == {("'[a-f]{2,4}'", "'[a-f]{3,4}'"), ("'[a-f]{2,4}'", "'[a-f]{2,5}'")}
    assert {after for _, after in changes("SQL")} == {
        "'SELECT a FROM b WHERE a < ? AND b = 1'",
        "'SELECT a FROM b WHERE a <= ? OR b = 1'",
    }
    assert changes("call") == {("max(1, now)", "min(1, now)")}
    assert ("token.uses += max(1, now)", "pass") in changes("statement removed")
    assert len(changes("not caught")) == len(changes("return")) == 1
    assert {after for _, after in changes("condition")} >= {"True", "False"}


def test_a_mutant_is_the_source_but_for_one_place() -> None:
    made = mutants(SOURCE)
    assert len({each.source for each in made}) == len(made) > 30
    for each in made:
        ast.parse(each.source)
        changed = [line for line in SOURCE.splitlines() if line not in each.source.splitlines()]
        assert len(changed) <= 2, each
        assert '"""A text with < and 7."""' in each.source
        assert "assert now >= 0" in each.source


def test_letters_of_several_bytes_before_a_fault() -> None:
    (made,) = (each for each in mutants('a = "é", b < 1\n') if each.after == "b <= 1")
    assert made.source == 'a = "é", (b <= 1)\n'


def test_the_package_has_more_mutants_than_are_drawn() -> None:
    found = bench.all_mutants()
    assert len(found) > bench.SAMPLE
    assert {file for file, _ in found} >= {"checking.py", "jws.py", "sqlite.py", "permission.py"}
    for file, before, after, why in bench.EQUIVALENT:
        assert why
        assert any((file, before, after) == (name, each.before, each.after) for name, each in found), (file, before)


def test_the_interval_of_a_share() -> None:
    low, high = bench.interval(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)  # Newcombe (1998), table I
    assert bench.interval(10, 10)[1] == 1.0


def test_faults_are_seen_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SLOW", ("asynchronous", "mutations", "permission_commands", "races", "other_libraries"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = bench.ROOT / bench.PACKAGE / "jws.py"
    source = path.read_text()
    wrong = source.replace('value["alg"] != ALGORITHM', 'value["alg"] == ALGORITHM')
    endless = source.replace("import re\n", "import re\nwhile True:\n    pass\n")
    with bench.room() as tests:
        outcome, by = tests.test("jws.py", wrong, 60)
        assert (outcome, by[:22]) == ("killed", "tests/permission/test_")
        assert tests.test("jws.py", endless, 1) == ("timeout", "")
        assert tests.test("jws.py", "import nothing_of_this_name\n", 60)[0] == "killed"
        assert tests._ask(["tests/permission/test_forgeries.py", *bench.OPTIONS], 60, False)["outcome"] == "survived"
    assert path.read_text() == source != wrong
    assert list(tmp_path.iterdir()) == []
    assert tests._process.returncode == 0


def test_a_result_says_what_survived(tmp_path: Path) -> None:
    found = bench.all_mutants()[:10]
    outcomes = [
        bench.Outcome(file, each, "survived" if place < 2 else "killed", "") for place, (file, each) in enumerate(found)
    ]
    bench.write(tmp_path / "out.json", {"commit": "none"}, outcomes, 1000, {"controls": 2})
    result = json.loads((tmp_path / "out.json").read_text())
    assert (result["killed"], result["tried"], result["mutants"], len(result["survivors"])) == (8, 10, 1000, 2)
    assert (result["figures"][0]["met"], result["figures"][0]["value"][:5]) == (False, "80.0%")
    assert [each for _, each in bench.survivors_of(tmp_path / "out.json", found)] == [each for _, each in found[:2]]


def test_survivors_are_marked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file, first), (_, second) = bench.all_mutants()[:2]
    outcomes = [bench.Outcome(file, first, "survived", ""), bench.Outcome(file, second, "killed", "a test")]
    out = tmp_path / "out.json"
    bench.write(out, {"commit": "none"}, outcomes, 1000, {})
    before = json.loads(out.read_text())
    monkeypatch.setattr(bench, "EQUIVALENT", ((file, first.before, first.after, "nobody can tell"),))
    bench.reread(out)
    after = json.loads(out.read_text())
    assert [each["equivalent"] for each in before["survivors"] + after["survivors"]] == [None, "nobody can tell"]
    assert "1 survive, 1 of them equivalent" in after["figures"][0]["setting"]
    assert after["killed"] == before["killed"] == 1
