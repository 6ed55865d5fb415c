"""What a process has leased: to the last token id, idle or not, and when the store is gone."""

from __future__ import annotations

import pytest
from granting import BODY, NOW, checker, nonce, nonce_of, token

from oml_fast.errors import QuotaExceeded, StoreUnavailableError
from oml_fast.permission import Amount, Limits, MemoryStore, Nonce, Request


class WatchedStore(MemoryStore):
    """Notes what is asked of it, and fails where it is told to."""

    def __init__(self) -> None:
        super().__init__(now=NOW - 500)
        self.asked: list[str] = []
        self.cleaned: list[tuple[float, float]] = []
        self.gone = False

    def _note(self, what: str) -> None:
        self.asked.append(what)
        if self.gone:
            raise StoreUnavailableError("the store is gone.")

    def lease(self, nonce: Nonce, limits: Limits, need: Amount, now: float) -> Amount:
        self._note("lease")
        return super().lease(nonce, limits, need, now)

    def give_back(self, nonce: Nonce, amount: Amount) -> None:
        self._note("give_back")
        super().give_back(nonce, amount)

    def clean_up(self, now: float, answers_before: float) -> None:
        self._note("clean_up")
        self.cleaned.append((now, answers_before))
        super().clean_up(now, answers_before)


def test_a_block_is_a_part_of_what_is_left_and_not_too_large() -> None:
    store = MemoryStore(now=NOW - 500)
    assert store.lease(nonce("many"), Limits(10**6, 10**6), Amount(1, 10), NOW) == Amount(64, 640)
    assert store.lease(nonce("few"), Limits(80, 800), Amount(1, 10), NOW) == Amount(10, 100)
    assert store.lease(nonce("few"), Limits(80, 800), Amount(20, 10), NOW) == Amount(20, 87)
    assert store.lease(nonce("few"), Limits(80, 800), Amount(50, 613), NOW) == Amount(50, 613)
    assert store.lease(nonce("few"), Limits(80, 800), Amount(0, 0), NOW) == Amount(0, 0)
    with pytest.raises(QuotaExceeded):
        store.lease(nonce("few"), Limits(80, 800), Amount(1, 0), NOW)


@pytest.mark.parametrize("limits", [Limits(output_tokens=1000), Limits(1000, 1000)], ids=["token ids", "both"])
def test_a_pool_is_used_to_the_last_token_id(limits: Limits) -> None:
    store = WatchedStore()
    here, text = checker(store), token(limits=limits)
    here.admit(text, request=Request(output_tokens=5), now=NOW)
    left = store.usage(nonce_of(text)).taken.output_tokens - 5
    assert left == 120
    for need in (100, 20):
        assert here.admit_at_once(text, request=Request(output_tokens=need), now=NOW) is not None
    assert here.admit_at_once(text, request=Request(output_tokens=1), now=NOW) is None
    assert here.admit_at_once(text, request=Request(output_tokens=0), now=NOW) is not None
    assert store.asked == ["lease"]


def test_a_refused_lease_leaves_the_pool_as_it_was() -> None:
    store = WatchedStore()
    here, text = checker(store), token(limits=Limits(80, 800))
    here.admit(text, request=Request(output_tokens=10), now=NOW)
    with pytest.raises(QuotaExceeded):
        here.admit(text, request=Request(output_tokens=791), now=NOW)
    assert here.admit_at_once(text, request=Request(output_tokens=90), now=NOW)
    here.close(now=NOW)
    assert store.usage(nonce_of(text)).taken == Amount(2, 100)


def test_a_pool_is_filled_by_what_it_lacks_alone() -> None:
    store = WatchedStore()
    here, text = checker(store), token(limits=Limits(output_tokens=800))
    here.admit(text, request=Request(output_tokens=10), now=NOW)  # leases 100
    here.admit(text, request=Request(output_tokens=700), now=NOW)  # lacks 610, which is more than an eighth
    assert store.usage(nonce_of(text)).taken == Amount(0, 710)
    here.close(now=NOW)
    assert store.usage(nonce_of(text)).taken == Amount(0, 710)


def test_a_pool_is_idle_from_its_last_use() -> None:
    store = WatchedStore()
    here, text = checker(store), token(limits=Limits(requests=1000, output_tokens=1000))
    request = Request(output_tokens=1)
    admission = here.admit(text, request=request, now=NOW)
    here.tend(now=NOW)
    here.tend(now=NOW + 0.5)
    assert "give_back" not in store.asked
    assert here.admit_at_once(text, request=request, now=NOW + 1.5) is not None
    here.tend(now=NOW + 3.4)
    assert "give_back" not in store.asked
    here.finish(admission, 1, now=NOW + 3)
    here.tend(now=NOW + 4.9)
    assert "give_back" not in store.asked
    here.tend(now=NOW + 5)
    assert store.asked.count("give_back") == 1
    here.tend(now=NOW + 99)  # there is nothing left to give back
    assert store.asked.count("give_back") == 1
    assert store.usage(nonce_of(text)).taken == Amount(2, 2)
    here.admit(text, request=request, now=NOW + 99)
    here.tend(now=NOW + 98.9)  # a clock that was set back
    assert store.asked.count("give_back") == 2


def test_an_empty_pool_is_not_given_back() -> None:
    store = WatchedStore()
    here, text = checker(store), token(limits=Limits(requests=1))
    here.admit(text, now=NOW)
    here.close(now=NOW)
    assert "give_back" not in store.asked


def test_what_could_not_be_given_back_is_still_there() -> None:
    store = WatchedStore()
    here, text = checker(store), token(limits=Limits(1000, 1000))
    request = Request(output_tokens=1)
    here.admit(text, request=request, now=NOW)
    store.gone = True
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            here.tend(now=NOW + 5)
    assert here.admit_at_once(text, request=request, now=NOW + 6) is not None
    store.gone = False
    here.close(now=NOW + 6)
    assert store.usage(nonce_of(text)).taken == Amount(2, 2)


def test_only_what_is_limited_is_counted() -> None:
    store = WatchedStore()
    here = checker(store)
    requests, tokens = token(limits=Limits(requests=100)), token(limits=Limits(output_tokens=100))
    here.finish(here.admit(requests, request=Request(output_tokens=7), now=NOW), 5, now=NOW)
    here.finish(here.admit(tokens, request=Request(output_tokens=7), now=NOW), now=NOW)
    here.finish(here.admit(tokens, request=Request(output_tokens=7), now=NOW), 5, now=NOW)
    here.close(now=NOW)
    assert store.usage(nonce_of(requests)).taken == Amount(1, 0)
    assert store.usage(nonce_of(tokens)).taken == Amount(0, 5)


def test_a_store_is_cleaned_up_once_a_minute_and_when_the_clock_was_set_back() -> None:
    store = WatchedStore()
    here = checker(store, retry_seconds=7)
    for now in (NOW, NOW + 0.0, NOW + 59.9, NOW + 60, NOW + 61, NOW + 59):
        here.tend(now=now)
    assert store.cleaned == [(NOW, NOW - 7), (NOW + 60, NOW + 53), (NOW + 59, NOW + 52)]


def test_an_answer_is_there_for_as_long_as_a_retry_may_come() -> None:
    store = WatchedStore()
    here, text, request = checker(store), token(use="once"), Request(body_sha256=BODY)
    here.finish(here.admit(text, request=request, now=NOW), 1, b"x" * 2**20, now=NOW)
    here.tend(now=NOW + 10)
    retry = here.admit(text, request=request, now=NOW + 10).earlier
    assert retry is not None
    assert retry.answer == b"x" * 2**20
    here.tend(now=NOW + 70.1)
    retry = here.admit(text, request=request, now=NOW + 1).earlier
    assert retry is not None
    assert (retry.state, retry.answer) == ("finished", None)
