"""The checker: every reason, every edge, sessions, single use, quotas."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from granting import (
    ATTACKER,
    BODY,
    ISSUER,
    KEY,
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
    Amount,
    Checker,
    Earlier,
    FixedKeys,
    KeyFile,
    Limits,
    MemoryStore,
    Nonce,
    Request,
    SqliteStore,
    change_key_file,
    read_key_list,
)
from oml_fast.signing import new_signing_key

KID = KEY.verification_key.kid


def nonce_of(text: str) -> Nonce:
    from oml_fast.permission import read_token

    return Nonce.of(read_token(text, lambda _: KEY.verification_key))


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


def test_a_refused_session_takes_nothing() -> None:
    store = MemoryStore(now=NOW - 500)
    here = checker(store)
    text = token(limits=Limits(requests=3, paths=("/v1/a",)))
    with pytest.raises(WrongRequest):
        here.admit(text, request=Request(path="/v1/b"), now=NOW)
    assert store.usage(nonce_of(text)).taken == Amount()


def test_single_use_and_its_retry() -> None:
    here, text, request = checker(), token(use="once"), Request(body_sha256=BODY)
    first = here.admit(text, request=request, now=NOW)
    assert (first.earlier, first.reserved) == (None, None)
    assert here.admit(text, request=request, now=NOW + 3).earlier == Earlier("started")
    here.finish(first, 5, b"the answer", now=NOW + 4)
    retry = here.admit(text, request=request, now=NOW + 5)
    assert retry.earlier == Earlier("finished", b"the answer")
    here.finish(retry, 5, b"another answer", now=NOW + 5)  # a retry has generated nothing to keep
    here.abort(retry, now=NOW + 5)
    assert here.admit(text, request=request, now=NOW + 6).earlier == Earlier("finished", b"the answer")
    with pytest.raises(ReplayedNonce):
        here.admit(text, request=request, now=NOW + 11)
    with pytest.raises(ReplayedNonce):
        here.admit(text, request=Request(body_sha256="ef" * 32), now=NOW + 1)
    with pytest.raises(ReplayedNonce):
        here.check(text, request=request, now=NOW + 1)


def test_an_aborted_single_use_stays_spent() -> None:
    here, text, request = checker(retry_seconds=5), token(use="once"), Request(body_sha256=BODY)
    here.abort(here.admit(text, request=request, now=NOW), now=NOW)
    assert here.admit(text, request=request, now=NOW + 5).earlier == Earlier("finished")
    with pytest.raises(ReplayedNonce):
        here.admit(text, request=request, now=NOW + 6)


def test_an_answer_that_is_too_long_is_not_kept() -> None:
    here, text, request = checker(), token(use="once"), Request(body_sha256=BODY)
    here.finish(here.admit(text, request=request, now=NOW), 1, b"x" * (2**20 + 1), now=NOW)
    assert here.admit(text, request=request, now=NOW).earlier == Earlier("finished")


def test_another_text_of_the_same_nonce_is_a_replay() -> None:
    here = checker()
    here.admit(token(use="once", nonce="s" * 22), now=NOW)
    with pytest.raises(ReplayedNonce):
        here.admit(token(use="once", nonce="s" * 22, licensee="Other"), now=NOW)


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


@pytest.mark.parametrize("how", ["nonce", "key", "retired", "issuer"])
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
    else:
        change_key_file(path, OWNER, lambda each: each.__class__("New Owner", *list(vars(each).values())[1:]), now=NOW)
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


def test_no_list_no_checker(tmp_path: Path) -> None:
    with pytest.raises(KeyListError):
        Checker(KeyFile(tmp_path / "none", OWNER.verification_key, MemoryStore()), MODEL, MemoryStore())


def test_a_quota_is_reserved_and_settled() -> None:
    store = MemoryStore(now=NOW - 500)
    here, text = checker(store), token(limits=Limits(requests=4, output_tokens=100))
    first = here.admit(text, request=Request(output_tokens=60), now=NOW)
    assert first.reserved == Amount(1, 60)
    with pytest.raises(QuotaExceeded, match="needs 60 output tokens, and 40 of 100"):
        here.admit(text, request=Request(output_tokens=60), now=NOW)
    here.finish(first, 10, now=NOW)
    second = here.admit(text, request=Request(requests=2, output_tokens=90), now=NOW)
    here.abort(second, now=NOW)  # nothing was generated: the requests come back, too
    third = here.admit(text, request=Request(requests=3, output_tokens=90), now=NOW)
    here.finish(third, 90, now=NOW)
    for request in (Request(output_tokens=1), Request(output_tokens=0)):
        with pytest.raises(QuotaExceeded):
            here.admit(text, request=request, now=NOW)
    here.close(now=NOW)
    assert store.usage(nonce_of(text)).taken == Amount(4, 100)


def test_an_unbounded_request_is_refused_where_output_is_limited() -> None:
    here = checker()
    for use in ("session", "once"):
        with pytest.raises(QuotaExceeded, match="max_tokens"):
            here.admit(token(use=use, limits=Limits(output_tokens=100)), now=NOW)
        here.admit(token(use=use, limits=Limits(requests=1)), now=NOW)


def test_a_single_use_has_its_limits_for_the_one_request() -> None:
    here, limits = checker(), Limits(requests=2, output_tokens=10)
    here.admit(token(use="once", limits=limits), request=Request(requests=2, output_tokens=10), now=NOW)
    for request in (Request(requests=3, output_tokens=1), Request(requests=1, output_tokens=11)):
        with pytest.raises(QuotaExceeded):
            here.admit(token(use="once", limits=limits), request=request, now=NOW)


def test_most_requests_need_no_store() -> None:
    store = MemoryStore(now=NOW - 500)
    here, text = checker(store), token(limits=Limits(requests=1000))
    here.admit(text, now=NOW)
    leased = store.usage(nonce_of(text)).taken.requests
    assert 50 <= leased <= 125
    for _ in range(leased - 1):
        assert here.admit_at_once(text, now=NOW) is not None
    assert here.admit_at_once(text, now=NOW) is None
    assert store.usage(nonce_of(text)).taken.requests == leased


def test_what_is_idle_goes_back() -> None:
    store = MemoryStore(now=NOW - 500)
    one, other = checker(store), checker(store)
    text = token(limits=Limits(requests=1000, output_tokens=10_000))
    admission = one.admit(text, request=Request(output_tokens=3), now=NOW)
    assert store.usage(nonce_of(text)).taken.requests > 1
    one.tend(now=NOW + 1)
    assert store.usage(nonce_of(text)).taken.requests > 1
    one.tend(now=NOW + 2)
    assert store.usage(nonce_of(text)).taken == Amount(1, 3)
    one.finish(admission, 1, now=NOW + 3)
    one.close(now=NOW + 3)
    assert store.usage(nonce_of(text)).taken == Amount(1, 1)
    other.admit(text, request=Request(requests=999, output_tokens=9999), now=NOW + 4)
    with pytest.raises(QuotaExceeded):
        one.admit(text, request=Request(output_tokens=0), now=NOW + 4)


def test_what_was_used_beyond_the_reservation_is_taken_all_the_same() -> None:
    store = MemoryStore(now=NOW - 500)
    here, text = checker(store), token(limits=Limits(output_tokens=100))
    here.finish(here.admit(text, request=Request(output_tokens=50), now=NOW), 70, now=NOW)
    here.tend(now=NOW + 10)
    assert store.usage(nonce_of(text)).taken == Amount(0, 70)
    with pytest.raises(QuotaExceeded):
        here.admit(text, request=Request(output_tokens=31), now=NOW)


def test_threads_never_pass_a_quota(tmp_path: Path) -> None:
    """Two checkers on one file, eight threads: what was admitted and not given back is what the limit allows."""
    store = SqliteStore(tmp_path / "store", now=NOW - 500)
    checkers = [checker(store), checker(store)]
    text, used, lock = token(limits=Limits(requests=300, output_tokens=2000)), [0, 0], threading.Lock()

    def work(number: int) -> None:
        here = checkers[number % 2]
        for turn in range(80):
            try:
                admission = here.admit(text, request=Request(output_tokens=20), now=NOW + turn / 10)
            except QuotaExceeded:
                here.tend(now=NOW + turn / 10)
                continue
            if turn % 4 == 0:
                here.abort(admission, now=NOW + turn / 10)
                continue
            here.finish(admission, turn % 21, now=NOW + turn / 10)
            with lock:
                used[0] += 1
                used[1] += turn % 21

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    for here in checkers:
        here.close(now=NOW)
    assert store.usage(nonce_of(text)).taken == Amount(*used)
    assert 100 < used[0] <= 300
    assert used[1] <= 2000
    store.close()


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
