"""What a command writes never takes the place of what it reads."""

from __future__ import annotations

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


@pytest.mark.parametrize("out", ["set/new.json", "report.json", "key.pem"])
def test_other_places_are_not_refused_for_it(run: Run, there: Path, out: str) -> None:
    """A new file in a folder that is read, or a file that no option names: the next error is the set's."""
    code, _, errors = run(*VERIFY, "--out", out)
    assert code == 1
    assert "would overwrite" not in errors
    assert "set/fingerprints.json" in errors
