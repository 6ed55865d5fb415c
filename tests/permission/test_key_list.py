"""The owner's list of keys: who signed it, its versions, its time, and how a running server sees the next one."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from granting import ATTACKER, ISSUER, KEY, NOW, OWNER, b64, key_list, parts, signed, token

from oml_fast.errors import InvalidArgumentError, KeyListError, OmlError
from oml_fast.permission import (
    MAX_LIFETIME,
    SKEW,
    FixedKeys,
    KeyFile,
    MemoryStore,
    change_key_file,
    new_key_list,
    read_key_file,
    read_key_list,
)
from oml_fast.permission.key_list import MOST_KEYS, TYPE
from oml_fast.signing import VerificationKey, new_signing_key

TRUSTED = OWNER.verification_key
KID = KEY.verification_key.kid
TEXT = key_list().signed(OWNER, NOW)
HEADER, CLAIMS, _ = parts(TEXT)
NONCE = "n" * 22


class Clock:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_a_list_says_what_was_put_in() -> None:
    keys = read_key_list(TEXT, TRUSTED)
    assert (keys.issuer, keys.version, keys.issued_at, keys.expires_at) == (ISSUER, 2, NOW, NOW + 30 * 86_400)
    assert list(keys.keys) == [KID]
    assert keys.verification_key(KID) == KEY.verification_key
    assert keys.verification_key("none") is None
    assert HEADER == {"alg": "EdDSA", "kid": TRUSTED.kid, "typ": TYPE}  # noqa: SIM300


@pytest.mark.parametrize(
    "text",
    [
        "",
        TEXT[:-1],
        TEXT[:60] + "A" + TEXT[61:],
        signed(HEADER, CLAIMS, ATTACKER),
        signed(HEADER | {"kid": ATTACKER.verification_key.kid}, CLAIMS, ATTACKER),
        signed(HEADER | {"kid": ATTACKER.verification_key.kid}, CLAIMS, OWNER),
        signed(HEADER | {"alg": "none"}, CLAIMS, OWNER),
        signed(HEADER | {"typ": "oml-permission+jwt"}, CLAIMS, OWNER),
        token(OWNER),
        token(),
        f"{b64(json.dumps(HEADER).encode())}.{b64(b'{}')}.{'A' * 86}",
    ],
    ids=lambda text: text[:12],
)
def test_a_list_of_somebody_else(text: str) -> None:
    with pytest.raises(KeyListError, match="is not the owner's"):
        read_key_list(text, TRUSTED)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"version": "2"},
        {"version": True},
        {"iat": 1.5},
        {"exp": None},
        {"iss": ""},
        {"more": 1},
        {"keys": {}},
        {"keys": [CLAIMS["keys"][0]] * 2},
        {"keys": CLAIMS["keys"] * (MOST_KEYS + 1)},
        {"keys": [7]},
        {"keys": [CLAIMS["keys"][0] | {"kid": "other"}]},
        {"keys": [list(CLAIMS["keys"][0])]},
        {"keys": [CLAIMS["keys"][0] | {"key": 7}]},
        {"keys": [CLAIMS["keys"][0] | {"key": "ab"}]},
        {"keys": [CLAIMS["keys"][0] | {"key": CLAIMS["keys"][0]["key"].upper()}]},
        {"keys": [CLAIMS["keys"][0] | {"key": KEY.verification_key.pem()}]},
        {"keys": [CLAIMS["keys"][0] | {"not_before": None}]},
        {"keys": [CLAIMS["keys"][0] | {"not_after": "never"}]},
        {"keys": [CLAIMS["keys"][0] | {"revoked": 0}]},
        {"revoked": []},
        {"revoked": {"short": NOW}},
        {"revoked": {NONCE: "now"}},
    ],
)
def test_a_list_that_is_signed_and_wrong(change: dict[str, Any]) -> None:
    with pytest.raises(KeyListError):
        read_key_list(signed(HEADER, CLAIMS | change, OWNER), TRUSTED)


def test_rotation_retiring_and_revoking() -> None:
    other = new_signing_key().verification_key
    keys = key_list().with_key(other, NOW).retiring(KID, NOW)
    assert not keys.keys[KID].signed_at(NOW + 1)
    assert keys.keys[KID].signed_at(NOW)
    assert keys.keys[other.kid].signed_at(NOW + 10**6)
    assert keys.keys[other.kid].signed_at(NOW - SKEW)
    assert not keys.keys[other.kid].signed_at(NOW - SKEW - 1)
    assert keys.retiring(KID, NOW + 50).keys[KID].not_after == NOW  # a retired key does not come back
    revoked = keys.revoking_key(other.kid, NOW).revoking(NONCE, NOW).revoking(NONCE, NOW + 9)
    assert revoked.keys[other.kid].revoked
    assert dict(revoked.revoked) == {NONCE: NOW}
    assert [key["kid"] for key in revoked.jwks()["keys"]] == [KID]
    for wrong in (
        lambda: keys.with_key(other, NOW),
        lambda: keys.retiring("nobody", NOW),
        lambda: keys.revoking_key("nobody", NOW),
        lambda: keys.revoking("short", NOW),
        lambda: new_key_list("a\nb"),
        lambda: keys.signed(OWNER, NOW, days=0),
        lambda: keys.signed(OWNER, NOW, days=-1),
    ):
        with pytest.raises(InvalidArgumentError):
            wrong()


def test_a_list_has_room_for_so_many_keys() -> None:
    keys = key_list()
    for number in range(MOST_KEYS - 1):
        keys = keys.with_key(VerificationKey(number.to_bytes(32, "little")), NOW)
    with pytest.raises(InvalidArgumentError, match="retire some"):
        keys.with_key(VerificationKey(b"\xff" * 32), NOW)


def test_what_nobody_can_refer_to_is_left_out() -> None:
    keys = key_list().retiring(KID, NOW).revoking(NONCE, NOW)
    last = NOW + MAX_LIFETIME + 2 * SKEW
    kept = read_key_list(keys.signed(OWNER, last - 1), TRUSTED)
    assert (list(kept.keys), list(kept.revoked)) == ([KID], [NONCE])
    gone = read_key_list(keys.signed(OWNER, last), TRUSTED)
    assert (list(gone.keys), list(gone.revoked)) == ([], [])


def test_a_list_has_its_time() -> None:
    keys = FixedKeys(read_key_list(key_list().signed(OWNER, NOW, days=1), TRUSTED))
    assert keys.current(NOW - SKEW) == keys.recent(NOW + 86_400 + SKEW - 1)
    with pytest.raises(KeyListError, match="has expired"):
        keys.current(NOW + 86_400 + SKEW)
    with pytest.raises(KeyListError, match="from the future"):
        keys.current(NOW - SKEW - 1)


def test_jwks_are_read_by_pyjwt() -> None:
    import jwt

    (key,) = jwt.PyJWKSet.from_dict(key_list().jwks()).keys
    assert key.key_id == KID
    claims = jwt.decode(
        token(), key, options={"verify_aud": False, "verify_exp": False, "verify_iat": False, "verify_nbf": False}
    )
    assert claims["iss"] == ISSUER


def make(path: Path, **given: Any) -> None:
    change_key_file(path, OWNER, lambda keys: keys.with_key(KEY.verification_key, NOW), now=NOW, issuer=ISSUER, **given)


def watched(path: Path, store: MemoryStore | None = None) -> tuple[KeyFile, Clock]:
    clock = Clock()
    return KeyFile(path, TRUSTED, store or MemoryStore(now=NOW), monotonic=clock), clock


def test_a_change_is_seen_within_half_a_second(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    make(path)
    file, clock = watched(path)
    assert file.recent(NOW) is None  # nothing was read yet
    assert file.current(NOW).version == 1
    change_key_file(path, OWNER, lambda keys: keys.revoking(NONCE, NOW), now=NOW)
    clock.time += 0.49
    assert file.recent(NOW) is file.current(NOW)
    assert file.current(NOW).version == 1
    clock.time += 0.01
    assert file.recent(NOW) is None  # who must not wait asks `current` elsewhere
    assert NONCE in file.current(NOW).revoked
    assert file.recent(NOW) is file.current(NOW)


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    make(path)
    file, clock = watched(path)
    first = file.current(NOW)
    monkeypatch.setattr(Path, "open", None)
    clock.time += 10
    assert file.current(NOW) is first


def test_whatever_is_wrong_with_the_file_permits_nothing_until_it_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    file, clock = watched(path)
    with pytest.raises(KeyListError, match="cannot read the list of keys"):
        file.current(NOW)
    make(path)
    good = path.read_text()
    clock.time += 1
    assert file.current(NOW).version == 1
    for content in ("", "garbage", signed(HEADER, CLAIMS, ATTACKER), good[:-9], "\x00" * 100, "é" * 50):
        path.write_text(content)
        clock.time += 1
        with pytest.raises(KeyListError):
            file.current(NOW)
        with pytest.raises(KeyListError):
            file.recent(NOW)
        path.write_text(good)
        clock.time += 1
        assert file.current(NOW).version == 1
    path.unlink()
    clock.time += 1
    with pytest.raises(KeyListError):
        file.current(NOW)


def test_an_older_list_is_refused_also_after_a_restart(tmp_path: Path) -> None:
    path, store = tmp_path / "keys", MemoryStore(now=NOW)
    make(path)
    old = path.read_text()
    change_key_file(path, OWNER, lambda keys: keys.revoking(NONCE, NOW), now=NOW)
    file, clock = watched(path, store)
    assert file.current(NOW).version == 2
    new = path.read_text()
    path.write_text(old)
    clock.time += 1
    with pytest.raises(KeyListError, match="version 1, and version 2 was seen"):
        file.current(NOW)
    with pytest.raises(KeyListError, match="version 1, and version 2 was seen"):
        watched(path, store)[0].current(NOW)
    path.write_text(read_key_list(old.strip(), TRUSTED).signed(OWNER, NOW + 1))  # another version 2
    with pytest.raises(KeyListError, match="two different lists"):
        watched(path, store)[0].current(NOW)
    path.write_text(new)
    clock.time += 1
    assert file.current(NOW).version == 2


def test_a_list_expires_while_the_server_runs(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    make(path, days=1)
    file, clock = watched(path)
    file.current(NOW)
    with pytest.raises(KeyListError, match="expired"):
        file.recent(NOW + 86_400 + SKEW)
    change_key_file(path, OWNER, lambda keys: keys, now=NOW + 86_400)
    clock.time += 1
    assert file.current(NOW + 86_400 + SKEW).version == 2


def test_changing_a_file(tmp_path: Path) -> None:
    path = tmp_path / "folder/keys"
    with pytest.raises(InvalidArgumentError, match="permission keygen"):
        change_key_file(path, OWNER, lambda keys: keys, now=NOW)
    make(path)
    with pytest.raises(InvalidArgumentError, match="is the list of 'Acme Models'"):
        change_key_file(path, OWNER, lambda keys: keys, now=NOW, issuer="Others")
    with pytest.raises(KeyListError, match="is not the owner's"):
        change_key_file(path, ATTACKER, lambda keys: keys, now=NOW)
    before = path.read_bytes()
    with pytest.raises(InvalidArgumentError):
        make(path)  # has the key already
    assert path.read_bytes() == before
    with pytest.raises(KeyListError, match="cannot read"):
        read_key_file(tmp_path / "none", TRUSTED)
    with pytest.raises(OmlError, match="cannot write"):
        make(path / "below")


def _revoke(path: Path, number: int) -> None:
    change_key_file(path, OWNER, lambda keys: keys.revoking(f"{number:022d}", NOW), now=NOW)


def test_who_changes_it_at_the_same_time_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    make(path)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_revoke, args=(path, number)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    keys = read_key_file(path, TRUSTED)
    assert (keys.version, len(keys.revoked)) == (9, 8)
