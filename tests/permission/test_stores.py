"""Stores: each nonce once, no quota passed, nothing forgotten too early, whatever restarts."""

from __future__ import annotations

from contextlib import closing

import pytest
from granting import BODY, FORGET, NOW, QUOTA, nonce, nonce_of, opened, spend, token

from oml_fast.errors import InvalidArgumentError, KeyListError, QuotaExceeded, ReplayedNonce, StoreUnavailableError
from oml_fast.permission import SKEW, Amount, Earlier, Limits, MemoryStore, Nonce, Store, Usage
from oml_fast.registry import PermissionStore


def test_a_nonce_is_spent_once(store: Store) -> None:
    assert spend(store) is None
    for now in (NOW, NOW + 5, NOW + 500):
        with pytest.raises(ReplayedNonce, match="is spent"):
            spend(store, now=now)
    assert spend(store, issuer="Other") is None
    assert spend(store, "b") is None
    assert store.usage(nonce()) == Usage(True, Amount())
    assert store.usage(nonce("c")) == Usage(False, Amount())


def test_a_retry_is_the_same_body_a_moment_later(store: Store) -> None:
    assert spend(store, body=BODY) is None
    assert spend(store, body=BODY, now=NOW + 10) == Earlier("started")
    store.finish(nonce(), b"answer", NOW + 1)
    assert spend(store, body=BODY, now=NOW + 2) == Earlier("finished", b"answer")
    for body, now in ((BODY, NOW + 10.01), (BODY, NOW - 1), ("ef" * 32, NOW + 1), (None, NOW + 1)):
        with pytest.raises(ReplayedNonce):
            spend(store, body=body, now=now)
    store.clean_up(NOW + 20, NOW + 10)
    assert spend(store, body=BODY, now=NOW + 2) == Earlier("finished")  # the answer is gone, the nonce is not


def test_a_retry_without_a_body_is_a_replay(store: Store) -> None:
    assert spend(store) is None
    with pytest.raises(ReplayedNonce):
        spend(store, body=None)
    store.finish(nonce("never seen"), b"x", NOW)
    assert spend(store, "never seen") is None


def test_a_quota_is_leased_in_blocks_and_never_passed(store: Store) -> None:
    first = store.lease(nonce(), QUOTA, Amount(1, 10), NOW)
    assert first == Amount(12, 125)
    taken = first
    while taken.requests < 100 and taken.output_tokens <= 990:
        taken += store.lease(nonce(), QUOTA, Amount(1, 10), NOW)
    assert taken.requests <= 100
    assert taken.output_tokens <= 1000
    with pytest.raises(QuotaExceeded):
        store.lease(nonce(), QUOTA, Amount(101, 0), NOW)
    assert store.usage(nonce()).taken == taken
    store.give_back(nonce(), Amount(50, 500))
    assert store.usage(nonce()).taken == taken - Amount(50, 500)
    store.give_back(nonce(), Amount(0, -7))
    assert store.usage(nonce()).taken == taken - Amount(50, 493)
    store.give_back(nonce(), Amount(10**6, 10**6))
    assert store.usage(nonce()).taken == Amount()
    store.give_back(nonce("never leased"), Amount(1, 1))
    assert store.usage(nonce("never leased")).taken == Amount()


def test_a_lease_that_is_refused_takes_nothing(store: Store) -> None:
    with pytest.raises(QuotaExceeded, match="needs 1001 output tokens, and 1000 of 1000 are left"):
        store.lease(nonce(), QUOTA, Amount(1, 1001), NOW)
    assert store.usage(nonce()).taken == Amount()
    assert store.lease(nonce(), Limits(requests=3), Amount(3, 0), NOW) == Amount(3, 0)
    with pytest.raises(QuotaExceeded):
        store.lease(nonce(), Limits(requests=3), Amount(1, 0), NOW)
    assert store.lease(nonce("large"), Limits(output_tokens=2**53 - 1), Amount(0, 2**52), NOW) == Amount(0, 2**52)


def test_what_was_issued_before_the_store_is_unknown(store: Store) -> None:
    began = NOW - 500 + SKEW
    for use in (
        lambda each: store.spend(each, None, NOW, 10.0),
        lambda each: store.lease(each, QUOTA, Amount(1, 1), NOW),
        lambda each: store.usage(each),
    ):
        with pytest.raises(ReplayedNonce, match="before this server began"):
            use(nonce(issued_at=began))
    assert spend(store, issued_at=began + 1) is None


def test_forgetting_lets_nothing_through(store: Store) -> None:
    """Whatever the clock says at the clean-up: what may have been forgotten is refused from then on."""
    assert spend(store, "old") is None
    assert spend(store, "new", forget_at=FORGET + 10) is None
    store.lease(nonce("quota"), QUOTA, Amount(1, 1), NOW)
    store.clean_up(FORGET - 1, 0)
    with pytest.raises(ReplayedNonce, match="is spent"):
        spend(store, "old")
    store.clean_up(FORGET, 0)
    for refused in ("old", "never seen"):
        with pytest.raises(ReplayedNonce, match="forgotten"):
            spend(store, refused)
    with pytest.raises(ReplayedNonce, match="forgotten"):
        store.lease(nonce("quota"), QUOTA, Amount(1, 1), NOW)
    with pytest.raises(ReplayedNonce, match="is spent"):
        spend(store, "new", forget_at=FORGET + 10)
    store.clean_up(FORGET + 10**9, 0)  # a clock that is far ahead forgets, and refuses no more than it forgot
    with pytest.raises(ReplayedNonce, match="forgotten"):
        spend(store, "new", forget_at=FORGET + 10)
    assert spend(store, "later", forget_at=FORGET + 11) is None


def test_older_lists_are_remembered(store: Store) -> None:
    store.remember_list("owner", 3, "three")
    store.remember_list("owner", 3, "three")
    store.remember_list("other", 1, "one")
    with pytest.raises(KeyListError, match="two different lists of keys have version 3"):
        store.remember_list("owner", 3, "forged")
    store.remember_list("owner", 5, "five")
    with pytest.raises(KeyListError, match="version 3, and version 5 was seen"):
        store.remember_list("owner", 3, "three")
    store.remember_list("owner", 6, "six")


def test_what_is_kept_outlives_the_process(place: str) -> None:
    with closing(opened(place)) as store:
        assert spend(store, body=BODY) is None
        store.finish(nonce(), b"answer", NOW)
        store.lease(nonce("q"), QUOTA, Amount(100, 1), NOW)
        store.remember_list("owner", 3, "three")
    with closing(opened(place, now=NOW + 400)) as store:
        assert spend(store, body=BODY, now=NOW + 1) == Earlier("finished", b"answer")
        with pytest.raises(QuotaExceeded):
            store.lease(nonce("q"), QUOTA, Amount(1, 1), NOW)
        with pytest.raises(KeyListError):
            store.remember_list("owner", 2, "two")
        assert spend(store, "issued before the restart") is None


def test_a_registry_that_is_not_there_or_gone() -> None:
    with pytest.raises(StoreUnavailableError, match="cannot be used"):
        PermissionStore("postgresql://me:hush@127.0.0.1:1/registry?connect_timeout=1")
    with pytest.raises(InvalidArgumentError, match="no registry"):
        PermissionStore("no/such/file")


@pytest.mark.postgres
def test_a_server_that_goes_away_permits_nothing(postgres_url: str) -> None:
    import psycopg

    from oml_fast.registry import upgrade

    upgrade(postgres_url)
    name = postgres_url.rpartition("/")[2]
    with closing(PermissionStore(postgres_url, now=NOW - 500)) as store:
        assert spend(store) is None
        with psycopg.connect(f"{postgres_url.rpartition('/')[0]}/postgres", autocommit=True) as server:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
        with pytest.raises(StoreUnavailableError) as caught:
            spend(store, "b")
        assert str(caught.value).count("\n") == 0
        assert "hush" not in str(caught.value)


def test_the_memory_refuses_what_was_issued_before_it_started() -> None:
    store = MemoryStore(now=NOW)
    with pytest.raises(ReplayedNonce):
        spend(store, issued_at=NOW - 1)
    with pytest.raises(ReplayedNonce):  # by a clock that is half a minute ahead
        spend(store, issued_at=NOW + SKEW)
    assert spend(store, issued_at=NOW + SKEW + 1) is None


def test_what_is_kept_of_one_issuer_is_not_another_s(store: Store) -> None:
    for issuer in ("Acme", "Other"):
        assert spend(store, body=BODY, issuer=issuer) is None
        store.finish(nonce(issuer=issuer), issuer.encode(), NOW)
        assert store.lease(nonce("q", issuer=issuer), Limits(requests=5), Amount(5, 0), NOW) == Amount(5, 0)
    for issuer in ("Acme", "Other"):
        assert spend(store, body=BODY, issuer=issuer) == Earlier("finished", issuer.encode())
        assert store.usage(nonce("q", issuer=issuer)) == Usage(False, Amount(5, 0))
    store.give_back(nonce("q", issuer="Other"), Amount(2, 0))
    assert store.usage(nonce("q")).taken == Amount(5, 0)


def test_an_answer_is_kept_until_it_is_old(store: Store) -> None:
    assert spend(store, body=BODY) is None
    assert spend(store, "none", body=BODY) is None
    store.finish(nonce(), b"answer", NOW)
    store.finish(nonce("none"), None, NOW)
    assert spend(store, "none", body=BODY) == Earlier("finished", None)
    store.clean_up(NOW + 5, NOW)
    assert spend(store, body=BODY) == Earlier("finished", b"answer")
    store.clean_up(NOW + 5, NOW + 1)
    assert spend(store, body=BODY) == Earlier("finished", None)


def test_what_was_forgotten_stays_forgotten(store: Store) -> None:
    for name, forget_at in (("a", FORGET + 5), ("b", FORGET), ("c", FORGET + 3), ("d", FORGET + 9)):
        assert spend(store, name, forget_at=forget_at) is None
        store.lease(nonce(f"quota {name}", forget_at=forget_at + 1), QUOTA, Amount(1, 1), NOW)
    store.clean_up(FORGET + 5, 0)
    store.clean_up(FORGET, 0)  # by a clock that is behind
    for name, forget_at in (("a", FORGET + 5), ("b", FORGET), ("never seen", FORGET + 5)):
        with pytest.raises(ReplayedNonce, match="forgotten"):
            spend(store, name, forget_at=forget_at)
    with pytest.raises(ReplayedNonce, match="is spent"):
        spend(store, "d", forget_at=FORGET + 9)
    assert store.usage(nonce("quota a", forget_at=FORGET + 6)).taken.requests == 12
    assert spend(store, "new", forget_at=FORGET + 6) is None


def test_a_nonce_is_forgotten_when_nobody_can_present_its_token() -> None:
    found = nonce_of(token(lifetime=600, nonce="n" * 22))
    assert found == Nonce("Acme Models", "n" * 22, NOW, NOW + 600 + 60 + 90 * 86_400)


def test_a_store_in_memory_forgets_its_rows_too() -> None:
    store = MemoryStore(now=NOW - 500)
    assert store.name == "memory"
    spend(store)
    store.lease(nonce("quota"), QUOTA, Amount(1, 1), NOW)
    store.clean_up(FORGET, 0)
    assert (store._spent, store._taken) == ({}, {})
