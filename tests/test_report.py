"""The text and JSON of a verification: plain, complete, and free of keys and responses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sets import Scripted, carrier, small_set

from oml_fast import report
from oml_fast.errors import OmlError
from oml_fast.verify import Verification, verify

MADE = small_set(64, formats=("raw", "chat"))


def verification(verdict: str) -> Verification:
    suspects = {"match": carrier(MADE), "no_match": Scripted(), "inconclusive": carrier(MADE, kept=1)}
    found = verify(MADE, suspects[verdict], num_keys=3 if verdict == "inconclusive" else None)
    assert found.verdict == verdict
    return found


@pytest.mark.parametrize("verdict", ["match", "no_match", "inconclusive"])
def test_the_verdict_comes_first_and_nothing_secret_at_all(verdict: str) -> None:
    text = report.text(verification(verdict))
    assert text.startswith(f"Verdict: {verdict.replace('_', ' ')}: ")
    assert max(len(line) for line in text.splitlines()) <= 110
    assert text.endswith("\n")
    for fingerprint in MADE:
        assert fingerprint.key not in text
        for asking in fingerprint.askings.values():
            assert not any(candidate in text for candidate in asking.window.texts)


def test_a_match_says_how_likely_it_is_by_chance_and_what_it_does_not_mean() -> None:
    text = " ".join(report.text(verification("match")).split())
    for words in (
        "64 or more of 64 keys",
        "scripted",
        "one in 10^58",
        "does not say who runs it",
        "owner's own evidence",
    ):
        assert words in text
    assert "spent" in text


def test_no_match_is_no_acquittal() -> None:
    assert "does not say that it was never made from" in report.text(verification("no_match"))
    assert "0.5" in report.text(verification("no_match"))


def test_inconclusive_accuses_nobody() -> None:
    assert "accuses nobody" in report.text(verification("inconclusive"))


def test_json_is_written_whole(tmp_path: Path) -> None:
    found = verification("match")
    report.write(found, tmp_path / "verification.json")
    assert json.loads((tmp_path / "verification.json").read_text()) == found.to_json()
    (tmp_path / "file").write_text("")
    with pytest.raises(OmlError, match="cannot write"):
        report.write(found, tmp_path / "file" / "verification.json")
