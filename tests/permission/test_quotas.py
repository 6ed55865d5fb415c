"""Quotas: reserved, settled, leased, and never passed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from granting import (
    NOW,
    checker,
    nonce_of,
    token,
)

from oml_fast.errors import (
    QuotaExceeded,
    WrongRequest,
)
from oml_fast.permission import (
    Amount,
    Limits,
    MemoryStore,
    Request,
    SqliteStore,
)


def test_a_refused_session_takes_nothing() -> None:
    store = MemoryStore(now=NOW - 500)
    here = checker(store)
    text = token(limits=Limits(requests=3, paths=("/v1/a",)))
    with pytest.raises(WrongRequest):
        here.admit(text, request=Request(path="/v1/b"), now=NOW)
    assert store.usage(nonce_of(text)).taken == Amount()


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
