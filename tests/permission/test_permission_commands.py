"""oml-fast permission: from a key to a refusal, as an owner types it."""

from __future__ import annotations

import hashlib
import json
import stat
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from granting import MODEL, OTHER_MODEL

from oml_fast.cli import main
from oml_fast.permission import Checker, KeyFile, Request, SqliteStore, read_key_list
from oml_fast.signing import read_signing_key, read_verification_key

LIST = ["--keys", "keys", "--owner-key", "owner.pem"]


class Shell:
    """Runs commands in a folder of their own."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str) -> Any:
        assert main(["permission", *words, "--json"]) == 0
        return json.loads(self._capsys.readouterr().out)

    def fails(self, *words: str) -> tuple[str, str]:
        assert main(["permission", *words]) == 1
        said = self._capsys.readouterr()
        assert said.err.startswith("oml-fast: ")
        assert said.err.count("\n") == 1
        return said.out, said.err

    def text(self, *words: str) -> str:
        assert main(["permission", *words]) == 0
        return self._capsys.readouterr().out

    def check(self, *words: str) -> Any:
        given = ["--token", "token", "--keys", "keys", "--verification-key", "owner.pem.pub", "--model-digest", MODEL]
        code = main(["permission", "check", *given, *words, "--json"])
        said = json.loads(self._capsys.readouterr().out)
        assert code == (0 if said["allowed"] else 1)
        return said

    def issue(self, *words: str) -> Any:
        given = ["--key", "permission.pem", "--issuer", "Acme", "--licensee", "Bolt", "--model-digest", MODEL]
        Path("token").unlink(missing_ok=True)
        return self("issue", *given, "--out", "token", *words)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """With an owner's key, and nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OML_FAST_SIGNING_PASSPHRASE", raising=False)
    assert main(["keygen", "--out", "owner.pem"]) == 0
    capsys.readouterr()
    return Shell(capsys)


@pytest.fixture
def granting(shell: Shell) -> Shell:
    """With a key for permissions in the list, too."""
    shell("keygen", "--out", "permission.pem", *LIST, "--issuer", "Acme")
    return shell


def test_a_key_is_made_and_listed(shell: Shell) -> None:
    said = shell("keygen", "--out", "permission.pem", *LIST, "--issuer", "Acme", "--days", "7")
    keys = read_key_list(Path("keys").read_text().strip(), read_verification_key("owner.pem.pub"))
    assert (said["version"], said["encrypted"], said["expires_at"]) == (1, False, keys.expires_at)
    assert keys.expires_at - keys.issued_at == 7 * 86_400
    assert list(keys.keys) == [said["kid"]] == [read_signing_key("permission.pem").verification_key.kid]
    assert stat.S_IMODE(Path("permission.pem").stat().st_mode) == 0o600


def test_rotation(granting: Shell) -> None:
    granting.issue()
    before = granting.check()
    said = granting("keygen", "--out", "next.pem", *LIST, "--retire", before["kid"])
    assert said["version"] == 2
    assert granting.check()["allowed"]  # what the retired key signed holds
    keys = granting("export", "--keys", "keys", "--verification-key", "owner.pem.pub")["jwks"]["keys"]
    assert [key["kid"] for key in keys] == [before["kid"], said["kid"]]


def test_a_key_that_is_not_listed_is_not_kept(granting: Shell) -> None:
    before = Path("keys").read_bytes()
    for words, error in (
        (["--issuer", "Others"], "is the list of 'Acme'"),
        (["--retire", "nobody"], "has no key 'nobody'"),
        (["--days", "0"], "would have expired"),
    ):
        assert error in granting.fails("keygen", "--out", "second.pem", *LIST, *words)[1]
        assert not Path("second.pem").exists()
    assert "never overwritten" in granting.fails("keygen", "--out", "permission.pem", *LIST)[1]
    assert Path("permission.pem").exists()
    assert Path("keys").read_bytes() == before


def test_encrypted_keys(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("passphrase").write_text("correct horse\n")
    making = ["keygen", "--out", "permission.pem", *LIST, "--issuer", "Acme", "--passphrase-file", "passphrase"]
    assert "chmod 600" in shell.fails(*making, "--encrypt")[1]
    Path("passphrase").chmod(0o600)
    assert "--encrypt as well" in shell.fails(*making)[1]
    assert shell(*making, "--encrypt")["encrypted"]
    assert b"ENCRYPTED" in Path("permission.pem").read_bytes()
    issuing = ["issue", "--key", "permission.pem", "--issuer", "Acme", "--licensee", "Bolt", "--model-digest", MODEL]
    assert "OML_FAST_SIGNING_PASSPHRASE" in shell.fails(*issuing)[1]
    assert shell(*issuing, "--passphrase-file", "passphrase")["token"]
    monkeypatch.setenv("OML_FAST_SIGNING_PASSPHRASE", "wrong horse")
    out, err = shell.fails(*issuing)
    assert "passphrase is another" in err
    assert "horse" not in out + err
    monkeypatch.setenv("OML_FAST_SIGNING_PASSPHRASE", "correct horse")
    assert shell(*issuing)["token"]
    for content in ("", "two\nlines\n"):
        Path("passphrase").write_text(content)
        assert "does not hold one line" in shell.fails(*issuing, "--passphrase-file", "passphrase")[1]
    assert "cannot read the passphrase" in shell.fails(*issuing, "--passphrase-file", "none")[1]
    Path("permission.pem").chmod(0o644)
    assert "chmod 600" in shell.fails(*issuing)[1]


def test_every_claim_can_be_asked_for(granting: Shell) -> None:
    Path("body").write_bytes(b"{}")
    said = granting.issue(
        *("--use", "once", "--lifetime", "99", "--requests", "5", "--output-tokens", "100", "--path", "/v1/a"),
        *("--path", "/v1/b", "--body", "body", "--nonce", "n" * 22, "--also", OTHER_MODEL),
    )
    assert said["token"] is None
    permission = said["permission"]
    assert permission["limits"] == {
        "requests": 5,
        "output_tokens": 100,
        "paths": ["/v1/a", "/v1/b"],
        "body_sha256": hashlib.sha256(b"{}").hexdigest(),
    }
    assert (permission["use"], permission["nonce"], permission["models"]) == ("once", "n" * 22, [MODEL, OTHER_MODEL])
    assert permission["expires_at"] - permission["issued_at"] == 99
    assert stat.S_IMODE(Path("token").stat().st_mode) == 0o600
    wanted = ["--path", "/v1/b", "--body", "body", "--output-tokens", "100", "--requests", "5"]
    assert granting.check(*wanted)["allowed"]
    assert granting.check("--path", "/v1/b", "--body", "body")["reason"] == "quota_exceeded"
    assert granting.check(*wanted[:2])["reason"] == "wrong_request"


def test_printing_and_refusing_to_issue(granting: Shell) -> None:
    issuing = ["issue", "--key", "permission.pem", "--issuer", "Acme", "--licensee", "Bolt"]
    text = granting.text(*issuing, "--model-digest", MODEL)
    assert text.count(".") == 2
    assert text.count("\n") == 1
    Path("there").write_text("")
    for words, error in (
        ([], "which model?"),
        (["--model-digest", "ab"], "cannot be issued: its aud"),
        (["--model-digest", MODEL, "--out", "there"], "already exists"),
        (["--model-digest", MODEL, "--body", "none"], "cannot read the body"),
        (["--model-digest", MODEL, "--body", "there", "--body-digest", MODEL], "both given"),
        (["--model-digest", MODEL, "--not-before", "soon"], "--not-before 'soon'"),
        (["--model-digest", MODEL, "--lifetime", "99999999"], "lives longer"),
        (["--model", "."], "holds no safetensors"),
    ):
        assert error in granting.fails(*issuing, *words)[1]


def test_a_check_says_allowed_and_what(granting: Shell) -> None:
    issued = granting.issue()["permission"]
    assert granting.check() == {"allowed": True, "reason": None, "store": None, **issued}
    given = ["--token", "token", "--keys", "keys", "--verification-key", "owner.pem.pub", "--model-digest", MODEL]
    for at in ("2001-01-31", "2999-01-31"):
        assert "list of keys" in granting.fails("check", *given, "--at", at)[1]
    at = datetime.fromtimestamp(issued["expires_at"] + 3600, UTC).isoformat()
    assert granting.check("--at", at)["reason"] == "expired"
    given = ["--token", "token", "--keys", "keys", "--verification-key", "owner.pem.pub", "--model-digest", OTHER_MODEL]
    out, err = granting.fails("check", *given)
    assert "wrong_model" in out
    assert "refused (wrong_model)" in err
    Path("token").write_text("no token")
    assert granting.check()["reason"] == "malformed_token"
    assert "cannot read the token" in granting.fails("check", "--token", "none", *given[2:])[1]


def test_a_token_from_standard_input(granting: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    granting.issue()
    monkeypatch.setattr("sys.stdin", io.StringIO(Path("token").read_text()))
    Path("token").write_text("")
    given = ["--token", "-", "--keys", "keys", "--verification-key", "owner.pem.pub", "--model-digest", MODEL]
    assert granting("check", *given)["licensee"] == "Bolt"


def test_a_check_sees_what_a_server_spent(granting: Shell) -> None:
    with closing(SqliteStore("store", now=0)) as store:
        granting.issue("--use", "once")
        for _ in range(2):
            assert granting.check("--store", "store")["allowed"]
        keys = KeyFile("keys", read_verification_key("owner.pem.pub"), store)
        Checker(keys, MODEL, store).check(Path("token").read_text().strip(), request=Request())
    assert granting.check("--store", "store")["reason"] == "replayed_nonce"
    assert granting.check()["allowed"]
    given = ["--token", "token", "--keys", "keys", "--verification-key", "owner.pem.pub", "--model-digest", MODEL]
    assert "no store at none" in granting.fails("check", *given, "--store", "none")[1]


def test_revoking(granting: Shell) -> None:
    nonce = granting.issue()["permission"]["nonce"]
    assert "nothing to revoke" in granting.fails("revoke", *LIST)[1]
    assert granting("revoke", *LIST, "--token", "token")["nonces"] == [nonce]
    assert granting.check()["reason"] == "revoked"
    other = granting.issue()["permission"]
    assert granting("revoke", *LIST, "--nonce", other["nonce"])["version"] == 3
    assert granting.check()["reason"] == "revoked"
    granting.issue()
    assert granting.check()["allowed"]
    assert granting("revoke", *LIST, "--kid", other["kid"])["kids"] == [other["kid"]]
    assert granting.check()["reason"] == "revoked"
    Path("token").write_text("forged")
    assert "no signed text" in granting.fails("revoke", *LIST, "--token", "token")[1]


def test_exporting_and_renewing(granting: Shell) -> None:
    trust = ["--keys", "keys", "--verification-key", "owner.pem.pub"]
    assert json.loads(granting.text("export", *trust))["keys"][0]["crv"] == "Ed25519"
    assert granting.text("export", *trust, "--form", "list").strip() == Path("keys").read_text().strip()
    said = granting("export", *LIST, "--renew", "--days", "90", "--form", "list", "--out", "copy")
    assert (said["version"], said["out"]) == (2, "copy")
    assert Path("copy").read_bytes() == Path("keys").read_bytes()
    assert json.loads(granting.text("export", *trust, "--out", "jwks") and Path("jwks").read_text())["keys"]
    for words, error in (
        (["--keys", "keys"], "--verification-key"),
        (["--keys", "keys", "--renew"], "belong together"),
        (LIST, "belong together"),
        (["--keys", "none", "--verification-key", "owner.pem.pub"], "cannot read"),
    ):
        assert error in granting.fails("export", *words)[1]


def test_a_time_in_a_configuration_file_is_read_as_on_the_command_line(granting: Shell) -> None:
    day = datetime.now(UTC).date() + timedelta(days=2)
    Path("issue.yaml").write_text(f"not-before: {day}\n")  # YAML has dates of its own
    issued = granting.issue("--config", "issue.yaml")
    assert issued["permission"]["not_before"] == datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
