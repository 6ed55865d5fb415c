"""Sessions that are kept: not verified again, and everything else holds for each request."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from granting import (
    KID,
    MODEL,
    NOW,
    OTHER_MODEL,
    OWNER,
    b64,
    checker,
    key_list,
    token,
    unb64,
)

from oml_fast.errors import (
    BadSignature,
    ExpiredPermission,
    KeyListError,
    NotYetValid,
    RevokedPermission,
    WrongModel,
    WrongRequest,
)
from oml_fast.permission import (
    SKEW,
    Checker,
    KeyFile,
    Limits,
    MemoryStore,
    Request,
    change_key_file,
)


def test_a_kept_session_is_not_verified_again_and_obeys_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from oml_fast.permission import checking

    here, text = checker(), token(lifetime=100, limits=Limits(paths=("/v1/a",)))
    request = Request(path="/v1/a")
    assert here.admit_at_once(text, request=request, now=NOW) is None
    here.admit(text, request=request, now=NOW)
    monkeypatch.setattr(checking, "read_token", None)
    for ask in (here.admit, here.admit_at_once):
        assert ask(text, request=request, now=NOW + 50) is not None
        for wrong, now, error in (
            (Request(path="/v1/b"), NOW, WrongRequest),
            (Request(OTHER_MODEL, "/v1/a"), NOW, WrongModel),
            (request, NOW + 100 + SKEW, ExpiredPermission),
            (request, NOW - SKEW - 1, NotYetValid),
        ):
            with pytest.raises(error):
                ask(text, request=wrong, now=now)
    monkeypatch.undo()
    head, _, tail = text.rpartition(".")
    forged = f"{head}.{b64(bytes([unb64(tail)[0] ^ 1]) + unb64(tail)[1:])}"
    assert here.admit_at_once(forged, request=request, now=NOW) is None
    with pytest.raises(BadSignature):
        here.admit(forged, request=request, now=NOW)


def test_kept_sessions_are_bounded() -> None:
    here = checker(sessions=3)
    texts = [token() for _ in range(5)]
    for text in texts:
        here.admit(text, now=NOW)
    assert len(here._sessions) == 3
    assert [here.admit_at_once(text, now=NOW) is not None for text in texts] == [False, False, True, True, True]


def test_single_use_is_never_kept() -> None:
    here, text = checker(), token(use="once")
    here.admit(text, now=NOW)
    assert here.admit_at_once(text, now=NOW) is None


@pytest.mark.parametrize("how", ["nonce", "key", "retired", "issuer", "gone"])
def test_a_change_of_the_list_reaches_kept_sessions_within_a_second(how: str, tmp_path: Path) -> None:
    path, store, times = tmp_path / "keys", MemoryStore(now=NOW - 500), [0.0]
    path.write_text(key_list().signed(OWNER, NOW - 900))
    keys = KeyFile(path, OWNER.verification_key, store, monotonic=lambda: times[0])
    here, text = Checker(keys, MODEL, store, now=NOW), token(nonce="k" * 22)
    here.admit(text, now=NOW)
    assert here.admit_at_once(text, now=NOW) is not None
    if how == "nonce":
        change_key_file(path, OWNER, lambda each: each.revoking("k" * 22, NOW), now=NOW)
    elif how == "key":
        change_key_file(path, OWNER, lambda each: each.revoking_key(KID, NOW), now=NOW)
    elif how == "retired":
        change_key_file(path, OWNER, lambda each: each.retiring(KID, NOW - 1), now=NOW)
    elif how == "gone":
        change_key_file(path, OWNER, lambda each: replace(each, keys={}), now=NOW)
    else:
        change_key_file(path, OWNER, lambda each: replace(each, issuer="New Owner"), now=NOW)
    times[0] = 0.99
    error = RevokedPermission if how in ("nonce", "key") else BadSignature
    assert here.admit_at_once(text, now=NOW) is None  # the list must be looked at first
    with pytest.raises(error):
        here.admit(text, now=NOW)
    with pytest.raises(error):
        here.admit_at_once(text, now=NOW)
    path.unlink()
    times[0] = 2.0
    with pytest.raises(KeyListError):
        here.admit(token(), now=NOW)
