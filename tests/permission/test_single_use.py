"""Single-use permissions: once, and the retry of a moment later."""

from __future__ import annotations

import pytest
from granting import (
    BODY,
    NOW,
    checker,
    token,
)

from oml_fast.errors import (
    QuotaExceeded,
    ReplayedNonce,
)
from oml_fast.permission import (
    Earlier,
    Limits,
    Request,
)


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


def test_a_single_use_has_its_limits_for_the_one_request() -> None:
    here, limits = checker(), Limits(requests=2, output_tokens=10)
    here.admit(token(use="once", limits=limits), request=Request(requests=2, output_tokens=10), now=NOW)
    for request in (Request(requests=3, output_tokens=1), Request(requests=1, output_tokens=11)):
        with pytest.raises(QuotaExceeded):
            here.admit(token(use="once", limits=limits), request=request, now=NOW)
