"""The list in a file: what a change looks like from outside, a store that is gone, a lock that cannot be had."""

from __future__ import annotations

import fcntl
import os
from dataclasses import replace
from pathlib import Path

import pytest
from granting import ATTACKER, ISSUER, KEY, KID, NOW, OWNER, key_list

from oml_fast.errors import InvalidArgumentError, KeyListError, OmlError, StoreUnavailableError
from oml_fast.permission import (
    MAX_LIFETIME,
    SKEW,
    KeyFile,
    KeyList,
    ListedKey,
    MemoryStore,
    change_key_file,
    key_file,
    new_key_list,
    read_key_file,
    read_key_list,
)
from oml_fast.permission import (
    key_list as room,
)
from oml_fast.signing import VerificationKey, new_signing_key

TRUSTED = OWNER.verification_key


def put(path: Path, keys: KeyList, **given: float) -> None:
    path.write_text(keys.signed(OWNER, NOW, **given))


def watched(path: Path, versions: MemoryStore | None = None) -> KeyFile:
    """Looks whenever it is asked."""
    times = iter(range(10**6))
    return KeyFile(path, TRUSTED, versions or MemoryStore(now=NOW), monotonic=lambda: float(next(times)))


def test_a_file_that_comes_back_as_it_was_counts_again(tmp_path: Path) -> None:
    path, aside = tmp_path / "keys", tmp_path / "aside"
    put(path, key_list())
    file = watched(path)
    assert file.current(NOW).version == 2
    path.rename(aside)
    with pytest.raises(KeyListError, match="cannot read"):
        file.current(NOW)
    aside.rename(path)
    assert file.current(NOW).version == 2
    path.rename(aside)
    path.write_text("damaged")
    with pytest.raises(KeyListError, match="is not the owner's"):
        file.current(NOW)
    aside.replace(path)
    assert file.current(NOW).version == 2


@pytest.mark.parametrize("what", ["time", "inode", "size"])
def test_each_sign_of_a_change_is_enough(what: str, tmp_path: Path) -> None:
    path, other = tmp_path / "keys", tmp_path / "other"
    put(path, key_list())
    file = watched(path)
    before, status = file.current(NOW), path.stat()
    bad = signed_by_attacker(path.read_text())
    if what == "inode":
        other.write_text(bad)
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.replace(path)
    else:
        path.write_text(bad + ("\n" if what == "size" else ""))
        shift = 1 if what == "time" else 0
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + shift))
    with pytest.raises(KeyListError):
        file.current(NOW)
    assert before.version == 2


def signed_by_attacker(text: str) -> str:
    """Of the same length."""
    return text[:-86] + "A" * 86


def test_a_store_that_is_gone_is_asked_again_at_once(tmp_path: Path) -> None:
    class Gone(MemoryStore):
        gone = True

        def remember_list(self, owner: str, version: int, digest: str) -> None:
            if self.gone:
                raise StoreUnavailableError("gone.")
            super().remember_list(owner, version, digest)

    path, versions = tmp_path / "keys", Gone(now=NOW)
    put(path, key_list())
    file = KeyFile(path, TRUSTED, versions, monotonic=lambda: 5.0)
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            file.current(NOW)
    assert file.recent(NOW) is None
    versions.gone = False
    assert file.current(NOW) == file.recent(NOW)


def test_the_time_is_looked_at_by_whoever_asks(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    put(path, key_list(), days=1)
    file = KeyFile(path, TRUSTED, MemoryStore(now=NOW), monotonic=lambda: 5.0)
    for ask in (file.current, file.recent, file.current):
        assert ask(NOW + 86_400 + SKEW - 0.1) is not None
        with pytest.raises(KeyListError, match="has expired"):
            ask(NOW + 86_400 + SKEW)
        with pytest.raises(KeyListError, match="from the future"):
            ask(NOW - SKEW - 0.1)


def test_a_change_gives_the_list_that_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a/b/keys"
    made = change_key_file(path, OWNER, lambda keys: keys, now=NOW, issuer=ISSUER, days=2)
    assert (made.version, made.issuer, made.expires_at) == (1, ISSUER, NOW + 2 * 86_400)
    assert read_key_file(path, TRUSTED) == made
    assert path.read_text().endswith("\n")
    again = change_key_file(path, OWNER, lambda keys: keys, now=NOW, issuer=ISSUER)
    assert (again.version, again.expires_at) == (2, NOW + 30 * 86_400)
    with pytest.raises(KeyListError, match="is not the owner's"):
        read_key_file(path, ATTACKER.verification_key)


def test_a_lock_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, how: int) -> None:
        assert how == fcntl.LOCK_EX
        raise OSError(37, "No locks available")

    path = tmp_path / "keys"
    put(path, key_list())
    before = path.read_bytes()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OmlError, match="cannot lock"):
        change_key_file(path, OWNER, lambda keys: keys, now=NOW)
    assert path.read_bytes() == before


def test_a_list_is_as_long_as_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = key_list()
    length = len(keys.signed(OWNER, NOW))
    monkeypatch.setattr(room, "MOST_CHARACTERS", length)
    monkeypatch.setattr(key_file, "MOST_CHARACTERS", length)
    assert read_key_list(keys.signed(OWNER, NOW), TRUSTED).version == 2
    put(tmp_path / "keys", keys)
    assert watched(tmp_path / "keys").current(NOW) == read_key_file(tmp_path / "keys", TRUSTED)
    monkeypatch.setattr(room, "MOST_CHARACTERS", length - 1)
    with pytest.raises(InvalidArgumentError, match="too long"):
        keys.signed(OWNER, NOW)


def test_what_is_signed_can_be_read() -> None:
    with pytest.raises(KeyListError):
        replace(key_list(), issuer="a\nb").signed(OWNER, NOW)
    for days, lives in ((1 / 86_400, 1), (1.5, 129_600)):
        made = read_key_list(key_list().signed(OWNER, NOW, days=days), TRUSTED)
        assert (made.issued_at, made.expires_at) == (NOW, NOW + lives)
    for days in (0.9 / 86_400, float("nan")):
        with pytest.raises(InvalidArgumentError, match="would have expired"):
            key_list().signed(OWNER, NOW, days=days)


def test_keys_begin_and_end() -> None:
    other = new_signing_key().verification_key
    assert new_key_list("Acme") == KeyList("Acme", 0, 0, 0, {}, {})
    keys = new_key_list("Acme").with_key(other, NOW + 0.9)
    assert keys.keys == {other.kid: ListedKey(other, NOW, None, False)}
    assert keys.retiring(other.kid, NOW + 5.9).keys[other.kid] == ListedKey(other, NOW, NOW + 5)
    assert keys.retiring(other.kid, NOW - 5).keys[other.kid] == ListedKey(other, NOW, NOW)
    assert keys.revoking_key(other.kid, NOW + 5).keys[other.kid] == ListedKey(other, NOW, NOW + 5, revoked=True)
    assert dict(keys.revoking("n" * 22, NOW + 0.9).revoked) == {"n" * 22: NOW}
    again = read_key_list(keys.revoking_key(other.kid, NOW + 5).signed(OWNER, NOW + 9), TRUSTED)
    assert again.keys == {other.kid: ListedKey(other, NOW, NOW + 5, revoked=True)}
    assert (again.version, again.issued_at) == (1, NOW + 9)


def test_a_full_list_is_read_and_its_keys_are_exported() -> None:
    keys = key_list()
    for number in range(room.MOST_KEYS - 1):
        keys = keys.with_key(VerificationKey(number.to_bytes(32, "little")), NOW)
    assert len(read_key_list(keys.signed(OWNER, NOW), TRUSTED).keys) == 64
    (exported,) = key_list().jwks()["keys"]
    raw = {name: exported.pop(name) for name in ("kty", "crv", "kid", "alg", "use")}
    assert raw == {"kty": "OKP", "crv": "Ed25519", "kid": KID, "alg": "EdDSA", "use": "sig"}
    assert exported == {"x": room.jws.encode_bytes(KEY.verification_key.raw)}


def test_what_has_ended_is_kept_until_nobody_can_present_it() -> None:
    early = key_list(now=NOW - 10).revoking("n" * 22, NOW).retiring(KID, NOW)
    for later, kept in ((MAX_LIFETIME + 2 * SKEW - 1, True), (MAX_LIFETIME + 2 * SKEW, False)):
        made = read_key_list(early.signed(OWNER, NOW + later), TRUSTED)
        assert (bool(made.keys), bool(made.revoked)) == (kept, kept)
    active = read_key_list(key_list().signed(OWNER, NOW + 10 * MAX_LIFETIME), TRUSTED)
    assert list(active.keys) == [KID]
