"""oml-fast keygen: two files, a passphrase from the environment or a terminal, nothing overwritten, nothing told."""

from __future__ import annotations

import argparse
import getpass
import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from oml_fast import settings
from oml_fast.cli import common, keygen
from oml_fast.errors import InvalidArgumentError, OmlError, SignatureError
from oml_fast.signing import read_signing_key, read_verification_key

PASSPHRASE = "correct horse"  # noqa: S105 - a test's own


@pytest.fixture(autouse=True)
def passphrase(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set what the environment gives as the passphrase (at first nothing)."""

    def set_to(value: str | None) -> None:
        monkeypatch.setattr(settings, "signing_passphrase", lambda: value, raising=False)

    set_to(None)
    return set_to


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set what is typed at the terminal, one answer after the other."""

    def set_to(*answers: str) -> None:
        left = list(answers)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(getpass, "getpass", lambda _: left.pop(0))

    return set_to


def options(*arguments: Any) -> argparse.Namespace:
    return common.parse({"keygen": keygen}, ["keygen", *map(str, arguments)])


def refused(*arguments: Any) -> str:
    with pytest.raises(OmlError) as caught:
        keygen.run(options(*arguments))
    assert PASSPHRASE not in str(caught.value)
    return str(caught.value)


def test_two_files_that_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "owner.pem"
    keygen.run(options("--out", path, "--json"))
    told = json.loads(capsys.readouterr().out)
    key = read_signing_key(path).verification_key
    assert read_verification_key(tmp_path / "owner.pem.pub") == key
    assert told == {
        "kid": key.kid, "verification_key": key.hex(), "verification_key_file": f"{path}.pub",
        "signing_key_file": str(path), "encrypted": False,
    }  # fmt: skip
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keygen.load_signing_key(path).verification_key == key


def test_the_text_tells_the_verification_key_and_not_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keygen.run(options("--out", tmp_path / "key"))
    out, err = capsys.readouterr()
    key = read_signing_key(tmp_path / "key")
    assert key.verification_key.hex() in out
    assert key._private.private_bytes_raw().hex() not in out + err


@pytest.mark.parametrize("name", ["key", "key.pub"])
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    assert "already exists" in refused("--out", tmp_path / "key")
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_the_environment_s_passphrase(tmp_path: Path, passphrase: Any) -> None:
    path = tmp_path / "key"
    passphrase(PASSPHRASE)
    assert "--encrypt" in refused("--out", path)
    keygen.run(options("--out", path, "--encrypt"))
    keygen.load_signing_key(path)
    passphrase("another")
    with pytest.raises(SignatureError, match="another"):
        keygen.load_signing_key(path)
    passphrase(None)
    with pytest.raises(InvalidArgumentError, match="OML_FAST_SIGNING_PASSPHRASE"):
        keygen.load_signing_key(path)


def test_a_passphrase_is_typed_twice(tmp_path: Path, typed: Any) -> None:
    path = tmp_path / "key"
    typed(PASSPHRASE, "correct hose")
    assert "differ" in refused("--out", path, "--encrypt")
    typed("", "")
    assert "empty" in refused("--out", path, "--encrypt")
    assert list(tmp_path.iterdir()) == []
    typed(PASSPHRASE, PASSPHRASE)
    keygen.run(options("--out", path, "--encrypt"))
    typed(PASSPHRASE)
    assert keygen.load_signing_key(path).verification_key == read_verification_key(tmp_path / "key.pub")


def test_without_a_terminal_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert "OML_FAST_SIGNING_PASSPHRASE" in refused("--out", tmp_path / "key", "--encrypt")
    assert list(tmp_path.iterdir()) == []
