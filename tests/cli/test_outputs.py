"""What a command writes never takes the place of what it reads."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with files whose content no command comes to read."""
    for name in ("set/fingerprints.json", "set/secret", "model/config.json", "key.pem", "a.json", "store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def header(typ: str) -> str:
    """The first part of a signed text of that type."""
    return base64.urlsafe_b64encode(json.dumps({"alg": "EdDSA", "typ": typ}).encode()).decode().rstrip("=")


VERIFY = ["verify", "--fingerprints", "set"]


@pytest.mark.parametrize(
    ("arguments", "out", "said"),
    [
        (
            [*VERIFY, "--out"],
            "set/fingerprints.json",
            "--out set/fingerprints.json would overwrite what --fingerprints",
        ),
        ([*VERIFY, "--html"], "set/../set/secret", "--fingerprints names"),
        ([*VERIFY, "--secret", "set/secret", "--out"], "set/secret", "choose another --out"),
        ([*VERIFY, "--model", "model", "--out"], "model/config.json", "--model names"),
        ([*VERIFY, "--signing-key", "key.pem", "--html"], "key.pem", "--signing-key names"),
        ([*VERIFY, "--registry", "store", "--suspect", "them", "--out"], "store", "--registry names"),
        (["report", "show", "--report", "a.json", "--html"], "a.json", "choose another --html"),
        (["commit", "stamp", "--commitment", "a.json", "--timestamp-request"], "a.json", "another --timestamp-request"),
        (["permission", "export", "--keys", "a.json", "--owner-key", "key.pem", "--out"], "a.json", "--keys names"),
        (["evaluate", "utility", "--model", "model", "--out"], "model/config.json", "--model names"),
    ],
)
def test_what_is_read_is_not_overwritten(run: Run, there: Path, arguments: list[str], out: str, said: str) -> None:
    before = (there / out).read_bytes()
    code, printed, errors = run(*arguments, out)
    assert (code, printed) == (1, "")
    assert said in errors
    assert "Nothing was changed" in errors
    assert errors.count("\n") == 1
    assert (there / out).read_bytes() == before


@pytest.mark.parametrize("out", ["set/new.json", "report.json"])
def test_other_places_are_not_refused_for_it(run: Run, there: Path, out: str) -> None:
    """A new file, in a folder that is read or elsewhere: the next error is the set's."""
    code, _, errors = run(*VERIFY, "--out", out)
    assert code == 1
    assert "would overwrite" not in errors
    assert "set/fingerprints.json" in errors


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (VERIFY, "--out"),
        (VERIFY, "--html"),
        (["identify", "--sets", "sets"], "--out"),
        (["report", "show", "--report", "r.json"], "--html"),
        (["evaluate", "utility", "--model", "m"], "--out"),
        (["permission", "export", "--keys", "k"], "--out"),
        (["commit", "open", "--commitment", "c", "--fingerprints", "f", "--secret", "s", "--first", "1"], "--out"),
        (["commit", "stamp", "--commitment", "c"], "--timestamp-request"),
    ],
)
@pytest.mark.parametrize("content", ["", "notes", "{}", '{"verification": 1, "pairs": 2}', "[[[[", header("oml+jwt")])
def test_what_the_command_did_not_write_is_not_overwritten(
    run: Run, there: Path, arguments: list[str], option: str, content: str
) -> None:
    (there / "mine").write_text(content)
    code, printed, errors = run(*arguments, option, "mine")
    assert (code, printed) == (1, "")
    assert f"{option} mine is there, and is nothing that this command may overwrite" in errors
    assert (there / "mine").read_text() == content


@pytest.mark.parametrize(
    ("arguments", "option", "name", "content"),
    [
        (VERIFY, "--html", "r.html", "<!doctype html>\n<title>Verification report: them</title>"),
        (["evaluate", "utility", "--model", "m"], "--out", "u.json", '{"base": 1, "model": 2, "texts": 3, "tasks": 4}'),
        (["permission", "export", "--keys", "k"], "--out", "jwks.json", '{"keys": []}'),
        (["permission", "export", "--keys", "k"], "--out", "list", f"{header('oml-permission-keys+jwt')}.e30.AA"),
    ],
)
def test_what_the_command_wrote_before_may_be_written_anew(
    run: Run, there: Path, arguments: list[str], option: str, name: str, content: str
) -> None:
    (there / name).write_text(content)
    code, _, errors = run(*arguments, option, name)
    assert code == 1
    assert "overwrite" not in errors


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    ("arguments", "fields", "answers"),
    [
        (VERIFY, ["verification"], "r.answers.jsonl"),
        (["verify", "--sets", "sets"], ["pairs"], "r.0.answers.jsonl"),
        (["identify", "--sets", "sets"], ["pairs", "identified"], "r.0.answers.jsonl"),
    ],
)
def test_a_report_may_be_written_anew_where_its_answers_are(
    run: Run, there: Path, arguments: list[str], fields: list[str], answers: str, own: bool
) -> None:
    """Also inside a folder that is read. Not where another command wrote it."""
    (there / "sets").mkdir()
    for place in (there, there / "set", there / "sets"):
        (place / "r.json").write_text(json.dumps(dict.fromkeys(fields if own else ["others"])))
        (place / answers).write_text("")
        code, _, errors = run(*arguments, "--out", place / "r.json")
        assert code == 1
        assert ("overwrite" not in errors) is own


def test_what_is_no_file_is_refused(run: Run, there: Path) -> None:
    os.mkfifo(there / "pipe")
    code, _, errors = run(*VERIFY, "--out", "pipe")
    assert code == 1
    assert "--out pipe is no file: choose another --out; --json prints the result" in errors
