"""The checker: every reason, every edge."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from granting import (
    ATTACKER,
    BODY,
    ISSUER,
    KEY,
    KID,
    MODEL,
    NOW,
    OTHER_MODEL,
    OWNER,
    checker,
    key_list,
    nonce_of,
    token,
)

from oml_fast import check
from oml_fast.errors import (
    BadSignature,
    ExpiredPermission,
    InvalidArgumentError,
    KeyListError,
    MalformedToken,
    NotYetValid,
    PermissionDenied,
    QuotaExceeded,
    ReplayedNonce,
    RevokedPermission,
    StoreUnavailableError,
    WrongModel,
    WrongRequest,
)
from oml_fast.permission import (
    SKEW,
    Checker,
    FixedKeys,
    KeyFile,
    Limits,
    MemoryStore,
    Request,
    SqliteStore,
    read_key_list,
)
from oml_fast.permission import key_list as key_list_room
from oml_fast.signing import new_signing_key


@pytest.mark.parametrize("use", ["session", "once"])
def test_time_has_its_edges(use: str) -> None:
    def at(now: float, **given: Any) -> None:
        checker().admit(token(use=use, lifetime=600, **given), now=now)

    at(NOW - SKEW)
    at(NOW + 600 + SKEW - 0.001)
    at(NOW + 100 - SKEW, not_before=NOW + 100)
    for now, given, error in (
        (NOW - SKEW - 0.001, {}, NotYetValid),
        (NOW + 100 - SKEW - 0.001, {"not_before": NOW + 100}, NotYetValid),
        (NOW - SKEW - 1, {"not_before": NOW - 400}, NotYetValid),
        (NOW + 600 + SKEW, {}, ExpiredPermission),
        (NOW + 86_400, {}, ExpiredPermission),
        (float("inf"), {}, KeyListError),
        (float("nan"), {}, KeyListError),
    ):
        with pytest.raises(error):
            at(now, **given)


def test_a_checker_may_allow_shorter_lives_only() -> None:
    strict = checker(max_lifetime=3600)
    strict.admit(token(lifetime=3600), now=NOW)
    with pytest.raises(MalformedToken, match="3600 seconds"):
        strict.admit(token(lifetime=3601), now=NOW)


def test_the_model_is_one_that_the_token_names_and_that_answers_here() -> None:
    here = Checker(FixedKeys(key_list()), [MODEL, OTHER_MODEL], MemoryStore(now=NOW - 500), now=NOW)
    here.admit(token(), request=Request(MODEL), now=NOW)
    here.admit(token(models=[MODEL, OTHER_MODEL]), request=Request(OTHER_MODEL), now=NOW)
    for given, model in (({}, OTHER_MODEL), ({"models": "ef" * 32}, MODEL), ({"models": "ef" * 32}, "ef" * 32)):
        with pytest.raises(WrongModel):
            here.admit(token(**given), request=Request(model), now=NOW)
    with pytest.raises(InvalidArgumentError, match="which one is asked"):
        here.admit(token(), now=NOW)
    with pytest.raises(WrongModel):
        checker().admit(token(models=OTHER_MODEL), now=NOW)
    with pytest.raises(InvalidArgumentError, match="at least one model"):
        Checker(FixedKeys(key_list()), [], MemoryStore(), now=NOW)


def test_keys_and_issuers() -> None:
    now_retired = key_list().retiring(KID, NOW)
    checker(keys=now_retired).admit(token(), now=NOW + 500)  # issued while the key signed
    for keys, given in (
        (now_retired, {"now": NOW + 1}),
        (key_list(key=ATTACKER).with_key(KEY.verification_key, NOW + SKEW + 1), {}),
        (key_list(key=ATTACKER), {}),
        (key_list(), {"key": ATTACKER}),
        (key_list(), {"issuer": "Somebody else"}),
        (key_list(), {"key": OWNER}),
    ):
        with pytest.raises(BadSignature):
            checker(keys=keys).admit(token(**given), now=NOW + 20)
    with pytest.raises(RevokedPermission, match="key"):
        checker(keys=key_list().revoking_key(KID, NOW)).admit(token(), now=NOW)
    with pytest.raises(BadSignature):
        checker(keys=key_list().revoking_key(KID, NOW)).admit(token(ATTACKER), now=NOW)
    text = token(nonce="r" * 22)
    with pytest.raises(RevokedPermission, match="it is revoked"):
        checker(keys=key_list().revoking("r" * 22, NOW)).admit(text, now=NOW)
    with pytest.raises(KeyListError, match="expired"):
        checker().admit(token(now=NOW + 40 * 86_400), now=NOW + 40 * 86_400)


def test_paths_and_bodies() -> None:
    here = checker()
    limits = Limits(paths=("/v1/completions", "/v1/chat/completions"), body_sha256=BODY)
    here.admit(token(limits=limits), request=Request(path="/v1/completions", body_sha256=BODY), now=NOW)
    for path, body in (
        (None, BODY),
        ("/v1/embeddings", BODY),
        ("/v1/completions/", BODY),
        ("/V1/completions", BODY),
        ("/v1/completions", None),
        ("/v1/completions", "ef" * 32),
    ):
        with pytest.raises(WrongRequest):
            here.admit(token(limits=limits), request=Request(path=path, body_sha256=body), now=NOW)


def test_refusals_spend_nothing() -> None:
    """All other checks come first: a token that is refused for another reason can still be used."""
    here, text = checker(), token(use="once", limits=Limits(body_sha256=BODY, output_tokens=10))
    good = Request(body_sha256=BODY, output_tokens=10)
    for request, now in (
        (Request(body_sha256="ef" * 32, output_tokens=5), NOW),
        (Request(body_sha256=BODY, output_tokens=11), NOW),
        (Request(body_sha256=BODY), NOW),
        (Request(OTHER_MODEL, body_sha256=BODY, output_tokens=5), NOW),
        (good, NOW - 100),
        (good, NOW + 1000),
    ):
        with pytest.raises(PermissionDenied):
            here.admit(text, request=request, now=now)
    assert here.look(text, request=good, now=NOW).use == "once"
    assert here.admit(text, request=good, now=NOW).earlier is None
    with pytest.raises(ReplayedNonce):
        here.look(text, request=good, now=NOW)


def test_no_list_no_checker(tmp_path: Path) -> None:
    with pytest.raises(KeyListError):
        Checker(KeyFile(tmp_path / "none", OWNER.verification_key, MemoryStore()), MODEL, MemoryStore())


def test_a_store_that_is_gone_permits_nothing(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store", now=NOW - 500)
    here, text = checker(store), token(limits=Limits(requests=1000))
    admission = here.admit(text, now=NOW)
    store.close()
    for bad in (token(use="once"), token(limits=Limits(requests=5))):
        with pytest.raises(StoreUnavailableError):
            here.admit(bad, now=NOW)
    assert here.admit_at_once(text, now=NOW) is not None  # it was leased before
    with pytest.raises(StoreUnavailableError):
        here.tend(now=NOW + 5)
    here.abort(admission, now=NOW)
    with pytest.raises(StoreUnavailableError):
        here.close(now=NOW + 5)


def test_looking_spends_nothing_and_sees_what_is_spent() -> None:
    here = checker()
    text = token(limits=Limits(requests=2))
    for _ in range(5):
        here.look(text, now=NOW)
    with pytest.raises(QuotaExceeded):
        here.look(text, request=Request(requests=3), now=NOW)
    here.admit(text, request=Request(requests=2), now=NOW)
    with pytest.raises(QuotaExceeded):
        here.look(text, now=NOW)


def test_the_function_check() -> None:
    store, text = MemoryStore(now=NOW - 500), token(use="once")
    given: dict[str, Any] = {"keys": key_list(), "models": MODEL, "store": store, "now": NOW}
    assert check(text, **given).licensee == "Bolt"
    with pytest.raises(ReplayedNonce):
        check(text, **given)
    with pytest.raises(PermissionDenied):
        check("no token", **given)


@pytest.mark.parametrize("given", [{"requests": 0}, {"requests": -1}, {"output_tokens": -1}])
def test_a_request_counts_from_one(given: dict[str, int]) -> None:
    with pytest.raises(InvalidArgumentError):
        Request(**given)


def test_every_refusal_has_its_code() -> None:
    kinds = PermissionDenied.__subclasses__()
    codes = {kind.code for kind in kinds}
    assert len(codes) == len(kinds) == 9
    assert codes == {
        "malformed_token",
        "bad_signature",
        "expired",
        "not_yet_valid",
        "wrong_model",
        "wrong_request",
        "revoked",
        "replayed_nonce",
        "quota_exceeded",
    }


def test_a_key_that_comes_back_under_the_same_kid_must_be_the_same() -> None:
    """A kid is the key's own digest: the list cannot name another key so."""
    other = new_signing_key().verification_key
    keys = read_key_list(key_list().with_key(other, NOW).signed(OWNER, NOW), OWNER.verification_key)
    assert all(kid == each.key.kid for kid, each in keys.keys.items())
    assert keys.issuer == ISSUER


def test_looking_asks_the_store_of_nothing_that_it_need_not_know() -> None:
    here = checker()
    before = NOW - 900  # when the store had not begun
    assert here.look(token(now=before), now=NOW).use == "session"
    for given in ({"use": "once", "lifetime": 3600}, {"limits": Limits(requests=5)}):
        with pytest.raises(ReplayedNonce):
            here.look(token(now=before, **given), now=NOW)
    with pytest.raises(WrongModel):
        here.look(token(models=OTHER_MODEL), now=NOW)
    with pytest.raises(QuotaExceeded):
        here.look(token(use="once", limits=Limits(output_tokens=5)), request=Request(output_tokens=6), now=NOW)


def test_without_a_clock_it_is_now(tmp_path: Path) -> None:
    here, now = Checker(FixedKeys(key_list(now=int(time.time()) - 5000)), MODEL, MemoryStore(now=0)), int(time.time())
    text = token(now=now, limits=Limits(requests=5))
    here.finish(here.admit(text))
    here.abort(here.admit(text))
    assert here.identify(text) == here.look(text) == here.check(text)
    here.tend()
    here.close()
    with pytest.raises(ReplayedNonce, match="before this server began"):
        MemoryStore().usage(nonce_of(text))
    with closing(SqliteStore(tmp_path / "store")) as store, pytest.raises(ReplayedNonce, match="began"):
        store.usage(nonce_of(text))
    with pytest.raises(ExpiredPermission):
        here.admit(token(now=now - 2000, lifetime=1000))


def test_the_numbers_that_the_documentation_names() -> None:
    from oml_fast.permission import LIFETIMES, MAX_LIFETIME, MOST_CHARACTERS, checking, key_file, leases, stores

    assert (SKEW, MAX_LIFETIME, MOST_CHARACTERS) == (30, 90 * 24 * 3600, 4096)
    assert LIFETIMES == {"session": 24 * 3600, "once": 600}
    assert (checking.RETRY_SECONDS, checking.SECONDS_BETWEEN_CLEANUPS) == (10, 60)
    assert (key_file.SECONDS_BETWEEN_LOOKS, key_list_room.DAYS, leases.IDLE_SECONDS) == (0.5, 30, 2)
    assert (stores.LEASE_SHARE, stores.MOST_ANSWER_BYTES) == (8, 2**20)
