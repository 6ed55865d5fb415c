"""The journal loses nothing: killed at any byte, resumed, and refused where it belongs to something else."""

from __future__ import annotations

import contextlib
import json
import math
import resource
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sets import Scripted, carrier, inside, small_set

from oml_fast.completer import CHOOSE, SCORE, Completion
from oml_fast.errors import CompleterError, InvalidArgumentError, OmlError
from oml_fast.verify import verify
from oml_fast.verify.journal import Journal, read_journal

HEADER = {"set_digest": "ab", "test": "window"}
ANSWERS = {
    (0, "raw"): Completion((1, 2), "é\nzwei\u2028 \x85\r\n"),
    (3, "chat"): Completion((), "", "thought \U0001f600", (0.25, -math.inf, math.inf)),
    (2, "raw"): Completion((), ""),
}


def journal(path: Path, header: dict[str, Any] | None = None) -> Journal:
    made = Journal(path)
    made.start(HEADER if header is None else header)
    return made


def write(path: Path) -> None:
    with journal(path) as made:
        for (number, name), answer in ANSWERS.items():
            made.keep(number, name, answer)


def test_what_was_kept_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    write(path)
    with journal(path) as again:
        assert len(again) == 3
        assert {asking: again.get(*asking) for asking in ANSWERS} == ANSWERS
        assert again.get(0, "chat") is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_journal(path)[1] == ANSWERS


def test_the_first_answer_counts(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    write(path)
    with journal(path) as again:
        again.keep(0, "raw", Completion((9,), "another"))
    assert read_journal(path)[1] == ANSWERS


def test_killed_at_any_byte_it_goes_on(tmp_path: Path) -> None:
    """At every offset: what was finished is there, the cut line is gone, and the rest can be kept again."""
    path = tmp_path / "answers.jsonl"
    write(path)
    whole = path.read_bytes()
    for offset in range(len(whole) + 1):
        path.write_bytes(whole[:offset])
        with journal(path) as again:
            finished = max(0, whole[:offset].count(b"\n") - 1)
            assert len(again) == finished
            for (number, name), answer in ANSWERS.items():
                again.keep(number, name, answer)
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "header",
    [{**HEADER, "set_digest": "cd"}, {"set_digest": "ab"}, {**HEADER, "more": 1}, {**HEADER, "test": "rank"}],
    ids=str,
)  # fmt: skip
def test_another_verifications_answers_are_refused_and_kept(tmp_path: Path, header: dict[str, Any]) -> None:
    path = tmp_path / "answers.jsonl"
    write(path)
    before = path.read_bytes()
    with pytest.raises(InvalidArgumentError, match="another verification") as caught:
        journal(path, header)
    assert path.read_bytes() == before
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("line", range(4))
@pytest.mark.parametrize(
    "damage", [b"{", b"[]", b"null", b"", b'{"number": 1}', b"\xff\xfe", b'{"number": "x", "format": 1}']
)
def test_a_damaged_line_is_refused_and_kept(tmp_path: Path, line: int, damage: bytes) -> None:
    path = tmp_path / "answers.jsonl"
    write(path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = damage + b"\n"
    path.write_bytes(b"".join(lines))
    before = path.read_bytes()
    with pytest.raises(InvalidArgumentError):
        journal(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"oml-fast-secret-v1:00ff", b"%PDF-1.7", b'{"format": 2', b"x" * 5000])
def test_a_file_that_is_no_journal_is_not_emptied(tmp_path: Path, content: bytes) -> None:
    """A file of one line without an end might be a journal cut in its header only if it begins as the header does."""
    path = tmp_path / "precious"
    path.write_bytes(content)
    with pytest.raises(InvalidArgumentError):
        journal(path)
    assert path.read_bytes() == content


@given(text=st.text(st.characters(exclude_categories=()), max_size=8))
def test_any_text_can_be_kept(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Also half of a surrogate pair, which an endpoint's JSON may hold: a suspect must not stop its verification so."""
    path = tmp_path_factory.mktemp("any") / "answers.jsonl"
    with journal(path) as made:
        made.keep(0, "raw", Completion((), text, text))
    assert read_journal(path)[1] == {(0, "raw"): Completion((), text, text)}


def test_half_a_surrogate_pair_can_be_kept(tmp_path: Path) -> None:
    with journal(tmp_path / "answers.jsonl") as made:
        made.keep(0, "raw", Completion((), json.loads('"\\ud800"')))
    assert read_journal(tmp_path / "answers.jsonl")[1][0, "raw"].text == "\ud800"


def test_where_nothing_can_be_written_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError):
        journal(tmp_path)


class Failing(Scripted):
    """Fails at a call, as a suspect that goes away."""

    fails_at = 1

    def complete(self, prompts: Any, length: int) -> list[Completion | None]:
        if len(self.calls) >= self.fails_at:
            raise CompleterError("it went away.")
        return super().complete(prompts, length)


@pytest.mark.parametrize("test", ["window", "count", "rank", "forced_choice"])
@pytest.mark.parametrize("mode", ["sequential", "fixed"])
def test_a_stopped_verification_goes_on_without_asking_again(tmp_path: Path, test: str, mode: str) -> None:
    made = small_set(12, width=4, formats=("raw", "chat"))
    suspect = carrier(made, kept=9, capabilities=frozenset({SCORE, CHOOSE}))
    options: dict[str, Any] = {"test": test, "mode": mode, "false_positive_rate": 1e-4}
    wanted = verify(made, suspect, **options).to_json()
    path = tmp_path / "answers.jsonl"
    stopped = Failing(**{name: getattr(suspect, name) for name in ("answers", "capabilities", "scores", "choices")})
    if test != "forced_choice":
        with pytest.raises(CompleterError), Journal(path) as first:
            verify(made, stopped, journal=first, **options)
    with Journal(path) as second:
        resumed = replace(suspect, calls=[])
        found = verify(made, resumed, journal=second, **options).to_json()
    unasked = Scripted(capabilities=suspect.capabilities)
    with Journal(path) as third:
        again = verify(made, unasked, journal=third, **options).to_json()
    assert unasked.calls == []
    for name in ("seconds", "fingerprints_per_second"):
        wanted.pop(name), found.pop(name), again.pop(name)
    assert wanted == found == again
    assert sum(resumed.calls) == 2 * wanted["queried"] - (0 if test == "forced_choice" else stopped.calls[0])


def test_an_answer_that_never_came_is_asked_again(tmp_path: Path) -> None:
    made = small_set(4)
    silent = carrier(made, unanswered=[made.fingerprints[1].askings["raw"].prompt_ids])
    path = tmp_path / "answers.jsonl"
    with Journal(path) as first:
        assert verify(made, silent, mode="fixed", journal=first).unanswered == 1
    again = carrier(made)
    with Journal(path) as second:
        found = verify(made, again, mode="fixed", journal=second)
    assert (found.unanswered, found.matches, again.calls) == (0, 4, [1])


def test_answers_that_a_completer_tells_early_are_kept_at_once(tmp_path: Path) -> None:
    class Telling(Scripted):
        on_answer: Any = None

        def complete(self, prompts: Any, length: int) -> list[Completion | None]:
            for place, answer in enumerate(super().complete(prompts, length)):
                if place == 3:
                    raise CompleterError("it went away.")
                self.on_answer(place, answer)
            return []

    made = small_set(6)
    path = tmp_path / "answers.jsonl"
    suspect = Telling(carrier(made).answers)
    with pytest.raises(CompleterError), Journal(path) as first:
        verify(made, suspect, mode="fixed", journal=first)
    assert suspect.on_answer is None
    assert set(read_journal(path)[1]) == {(0, "raw"), (1, "raw"), (2, "raw")}


@pytest.mark.parametrize("first", [{"order": [5, 4, 3, 2, 1, 0]}, {"order": None}])
def test_another_order_is_another_verification(tmp_path: Path, first: dict[str, Any]) -> None:
    """Else an owner who knows the answers resumes with the keys that matched by luck in front, and convicts anyone."""
    made = small_set(6)
    path = tmp_path / "answers.jsonl"
    with Journal(path) as one:
        verify(made, carrier(made, kept=2), journal=one, **first)
    with pytest.raises(InvalidArgumentError, match="another verification"), Journal(path) as two:
        verify(made, carrier(made, kept=2), journal=two, order=[0, 1, 2, 3, 5, 4])


def test_a_fixed_number_of_keys_stays_fixed(tmp_path: Path) -> None:
    """Looking at 3 keys and going on to 6 is optional stopping, which only the sequential test allows."""
    made = small_set(6)
    path = tmp_path / "answers.jsonl"
    with Journal(path) as one:
        verify(made, carrier(made, kept=2), journal=one, mode="fixed", num_keys=3)
    with pytest.raises(InvalidArgumentError, match="another verification"), Journal(path) as two:
        verify(made, carrier(made, kept=2), journal=two, mode="fixed", num_keys=6)


def test_a_sequential_verification_goes_on_with_more_keys(tmp_path: Path) -> None:
    made = small_set(12)
    path = tmp_path / "answers.jsonl"
    with Journal(path) as one:
        assert verify(made, carrier(made), journal=one, num_keys=3).verdict == "inconclusive"
    suspect = carrier(made)
    with Journal(path) as two:
        found = verify(made, suspect, journal=two)
    assert found.verdict == "match"
    assert sum(suspect.calls) == found.queried - 3


def test_an_order_picked_after_the_answers_convicts_an_innocent() -> None:
    """Why the order is part of what is fixed: 60 keys answered at random, the same answers in two orders."""
    made = small_set(60, width=3)
    suspect = inside(made, [0] * 60)
    assert verify(made, suspect, false_positive_rate=1e-4).verdict != "match"
    lucky = sorted(range(60), key=lambda n: made.fingerprints[n].askings["raw"].responses[0].index != 0)
    assert verify(made, suspect, false_positive_rate=1e-4, order=lucky).verdict == "match"


@contextlib.contextmanager
def at_most(size: int) -> Iterator[None]:
    """No file grows beyond that many bytes: the system refuses it as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_once(tmp_path: Path) -> None:
    """Closing tries to write again what did not fit: that is no second error, and no other one."""
    kept = journal(tmp_path / "answers.jsonl")
    with at_most(kept.path.stat().st_size + 8), pytest.raises(OmlError, match="cannot write"), kept:
        kept.keep(0, "raw", ANSWERS[0, "raw"])
    kept.close()
    with journal(kept.path) as again:
        assert len(again) == 0
