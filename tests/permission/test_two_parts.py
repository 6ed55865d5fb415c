"""A check in two parts, as a server makes it: who it is, before the body is there, and what it takes, afterwards."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from granting import (
    BODY,
    KEY,
    KID,
    KINDS,
    MODEL,
    NOW,
    OTHER_MODEL,
    OWNER,
    b64,
    checker,
    key_list,
    nonce_of,
    token,
    unb64,
)

from oml_fast.errors import (
    BadSignature,
    ExpiredPermission,
    InvalidArgumentError,
    KeyListError,
    MalformedToken,
    NotYetValid,
    QuotaExceeded,
    ReplayedNonce,
    RevokedPermission,
    WrongModel,
    WrongRequest,
)
from oml_fast.permission import (
    SKEW,
    Amount,
    Checker,
    Earlier,
    FixedKeys,
    KeyFile,
    Limits,
    MemoryStore,
    Request,
    SqliteStore,
    Usage,
    change_key_file,
)


@pytest.mark.parametrize("name", KINDS)
def test_both_parts_are_the_whole(name: str) -> None:
    kind, store = KINDS[name], MemoryStore(now=NOW - 500)
    here, text = checker(store), kind.token()
    permission = here.identify(text, path=kind.request.path, now=NOW)
    assert here.identify_at_once(text, path=kind.request.path, now=NOW) == permission
    assert store.usage(nonce_of(text)) == Usage(False, Amount())
    admission = here.take(permission, request=kind.request, now=NOW)
    assert (admission.permission, admission.earlier) == (permission, None)
    assert admission == checker().admit(text, request=kind.request, now=NOW)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("use", ["session", "once"])
def test_who_it_is_must_hold_before_there_is_a_body(use: str, at_once: bool) -> None:
    here = checker(max_lifetime=90_000)

    def ask(text: str, path: str | None = "/v1/a", now: float = NOW, here: Checker = here) -> object:
        return (here.identify_at_once if at_once else here.identify)(text, path=path, now=now)

    limits = Limits(paths=("/v1/a",), body_sha256=BODY, output_tokens=5)
    good = token(use=use, limits=limits)
    for _ in range(2):  # the second time a session is known, and nothing else holds
        assert ask(good) is not None
        for error, text, path, now in (
            (WrongRequest, good, "/v1/b", NOW),
            (WrongRequest, good, None, NOW),
            (ExpiredPermission, good, "/v1/a", NOW + 100_000),
            (NotYetValid, good, "/v1/a", NOW - SKEW - 1),
            (WrongModel, token(use=use, models=OTHER_MODEL), "/v1/a", NOW),
            (BadSignature, token(use=use, issuer="Mallory"), "/v1/a", NOW),
            (MalformedToken, token(use=use, lifetime=90_001), "/v1/a", NOW),
            (MalformedToken, good + ".", "/v1/a", NOW),
        ):
            with pytest.raises(error):
                ask(text, path, now)
        revoking = checker(keys=key_list().revoking_key(KID, NOW))
        with pytest.raises(RevokedPermission):
            ask(good, here=revoking)
    head, _, tail = good.rpartition(".")
    with pytest.raises(BadSignature):
        ask(f"{head}.{b64(bytes([unb64(tail)[0] ^ 1]) + unb64(tail)[1:])}")


def test_one_of_several_models_is_enough_until_one_is_asked() -> None:
    here = Checker(FixedKeys(key_list()), [MODEL, OTHER_MODEL], MemoryStore(now=NOW - 500), now=NOW)
    permission = here.identify(token(models=OTHER_MODEL), now=NOW)
    with pytest.raises(WrongModel):
        here.identify(token(models="ef" * 32), now=NOW)
    with pytest.raises(WrongModel):
        here.take(permission, request=Request(MODEL), now=NOW)
    with pytest.raises(InvalidArgumentError):
        here.take(permission, now=NOW)
    assert here.take(permission, request=Request(OTHER_MODEL), now=NOW).permission == permission


@pytest.mark.parametrize("at_once", [False, True])
def test_what_is_taken_is_checked_once_more(at_once: bool, tmp_path: Path) -> None:
    """A body may take its time: what was revoked or has expired meanwhile is refused."""
    path, store, times = tmp_path / "keys", MemoryStore(now=NOW - 500), [0.0]
    path.write_text(key_list().signed(OWNER, NOW - 900))
    keys = KeyFile(path, OWNER.verification_key, store, monotonic=lambda: times[0])
    here = Checker(keys, MODEL, store, now=NOW)
    take: Callable[..., object] = here.take_at_once if at_once else here.take
    texts = [token(use=use, nonce=use[0] * 22, lifetime=600) for use in ("session", "once")]
    permissions = [here.identify(text, now=NOW) for text in texts]
    for permission in permissions:
        with pytest.raises(ExpiredPermission):
            take(permission, now=NOW + 600 + SKEW)
        with pytest.raises(WrongModel):
            take(permission, request=Request(OTHER_MODEL), now=NOW)
    change_key_file(path, OWNER, lambda each: each.revoking("s" * 22, NOW).revoking("o" * 22, NOW), now=NOW)
    times[0] = 1.0
    assert here.take_at_once(permissions[0], now=NOW) is None  # the list must be looked at first
    assert here.identify_at_once(texts[0], now=NOW) is None
    keys.current(NOW)
    for permission in permissions:
        with pytest.raises(RevokedPermission):
            take(permission, now=NOW)
    path.unlink()
    times[0] = 2.0
    for permission in permissions:
        with pytest.raises(KeyListError):
            here.take(permission, now=NOW)


def test_limits_are_taken_in_the_second_part() -> None:
    here = checker()
    for use in ("session", "once"):
        permission = here.identify(token(use=use, limits=Limits(2, 10, ("/v1/a",), BODY)), path="/v1/a", now=NOW)
        for error, request in (
            (WrongRequest, Request(path="/v1/a", body_sha256="ef" * 32, output_tokens=1)),
            (WrongRequest, Request(path="/v1/b", body_sha256=BODY, output_tokens=1)),
            (QuotaExceeded, Request(path="/v1/a", body_sha256=BODY, output_tokens=11)),
            (QuotaExceeded, Request(path="/v1/a", body_sha256=BODY, requests=3, output_tokens=1)),
        ):
            with pytest.raises(error):
                here.take(permission, request=request, now=NOW)
            if error is WrongRequest or use == "once":
                with pytest.raises(error):
                    here.take_at_once(permission, request=request, now=NOW)
            else:
                assert here.take_at_once(permission, request=request, now=NOW) is None  # it would have to ask
        good = Request(path="/v1/a", body_sha256=BODY, requests=2, output_tokens=10)
        assert here.take(permission, request=good, now=NOW).permission == permission


def test_what_must_wait_is_not_taken_at_once(tmp_path: Path) -> None:
    """A store in memory never waits; a file does, and then nothing is spent."""
    once = token(use="once")
    quick = checker()
    admission = quick.take_at_once(quick.identify(once, now=NOW), now=NOW)
    assert admission is not None
    assert admission.earlier is None
    with pytest.raises(ReplayedNonce):
        quick.take_at_once(quick.identify(once, now=NOW), now=NOW)
    with closing(SqliteStore(tmp_path / "store", now=NOW - 500)) as store:
        slow = checker(store)
        permission = slow.identify(once, now=NOW)
        assert slow.take_at_once(permission, now=NOW) is None
        assert not store.usage(nonce_of(once)).spent
        assert slow.take(permission, request=Request(body_sha256=BODY), now=NOW).earlier is None
        retry = slow.take(permission, request=Request(body_sha256=BODY), now=NOW)
        assert retry.earlier == Earlier("started")


def test_a_quota_that_is_leased_is_taken_at_once() -> None:
    store = MemoryStore(now=NOW - 500)
    here, text = checker(store), token(limits=Limits(requests=1000))
    permission = here.identify(text, now=NOW)
    assert here.take_at_once(permission, now=NOW) is None  # nothing is leased yet
    assert store.usage(nonce_of(text)).taken == Amount()
    assert here.take(permission, now=NOW).reserved == Amount(1, 0)
    leased = store.usage(nonce_of(text)).taken.requests
    taken = [here.take_at_once(permission, now=NOW) for _ in range(leased)]
    assert [each is not None for each in taken] == [True] * (leased - 1) + [False]


def test_a_session_without_limits_asks_no_store(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store", now=NOW - 500)
    here = checker(store)
    store.close()
    for text in (token(), token(now=NOW - 900)):  # it counts from before the store began, too
        for admission in (here.admit(text, now=NOW), here.take_at_once(here.identify(text, now=NOW), now=NOW)):
            assert admission is not None
            here.finish(admission, 5, b"answer", now=NOW)
            here.abort(admission, now=NOW)
        assert here.look(text, now=NOW).kid == KEY.verification_key.kid
    here.close(now=NOW)
