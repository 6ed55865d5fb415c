"""Mutated tokens and noise: whatever comes is accepted, byte for byte, or PermissionDenied."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from granting import (
    CLAIMS,
    HEADER,
    KINDS,
    NOW,
    TEST_ALL,
    TOKEN,
    checker,
    nonce_of,
    read,
    signed,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spoiling import spoil

from oml_fast.errors import MalformedToken, PermissionDenied
from oml_fast.permission import Amount, MemoryStore, Usage

MUTATED = 100_000 if TEST_ALL else 5_000


def test_every_change_of_one_character_is_refused() -> None:
    accepted = []
    for place, old in enumerate(TOKEN):
        for new in {"A", "_", ".", "=", chr(ord(old) ^ 1)} - {old}:
            try:
                accepted.append(read(TOKEN[:place] + new + TOKEN[place + 1 :]))
            except PermissionDenied:
                continue
    assert accepted == []


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_mutated_tokens_are_refused_and_nothing_else(data: st.DataObject) -> None:
    """Cut, repeated, swapped, or replaced somewhere: never accepted, never another exception."""
    start = data.draw(st.integers(0, len(TOKEN)))
    end = data.draw(st.integers(start, len(TOKEN)))
    middle = data.draw(st.one_of(st.text(max_size=8), st.just(TOKEN), st.just(TOKEN[start:end] * 2)))
    text = TOKEN[:start] + middle + TOKEN[end:]
    if text != TOKEN:
        with pytest.raises(PermissionDenied):
            read(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*sorted(CLAIMS), "limits"]), JSON, st.booleans())
def test_any_claim_well_signed_is_read_or_refused(name: str, value: Any, in_limits: bool) -> None:
    claims = CLAIMS | ({"limits": {name: value}} if in_limits else {name: value})
    try:
        found = read(signed(HEADER, claims))
    except MalformedToken:
        return
    assert found.to_json()


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=400), st.binary(max_size=400)))
def test_noise_is_refused(noise: str | bytes) -> None:
    with pytest.raises(PermissionDenied):
        read(noise)


def test_no_mutated_token_is_accepted() -> None:
    """Of both uses, with and without limits: nothing but what was issued, byte for byte, and never another error."""
    rng, issued = random.Random(6), [(kind.token(), kind.request) for kind in KINDS.values()]  # noqa: S311
    store, refusals, seen = MemoryStore(now=NOW - 500), Counter[str](), {text for text, _ in issued}
    here = checker(store)
    while len(seen) < MUTATED + len(issued):
        original, request = rng.choice(issued)
        text = spoil(rng, original, rng.choice(issued)[0])
        if text not in seen:
            seen.add(text)
            with pytest.raises(PermissionDenied) as caught:
                here.admit(text, request=request, now=NOW)
            refusals[caught.value.code] += 1
    assert refusals["malformed_token"] > 0.1 * MUTATED  # so the changes are not all of one kind, seen at one place
    assert refusals["bad_signature"] > 0.1 * MUTATED
    assert set(refusals) == {"malformed_token", "bad_signature"}
    assert not here._sessions
    assert all(store.usage(nonce_of(text)) == Usage(False, Amount()) for text, _ in issued)  # and nothing was taken
    for text, request in issued:
        assert here.admit(text, request=request, now=NOW).earlier is None
