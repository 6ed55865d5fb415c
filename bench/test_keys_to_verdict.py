"""The draws of fresh secrets are those that generation would have made."""

from __future__ import annotations

from dataclasses import replace

import pytest
from keys_to_verdict import redrawn
from sets import OTHER_SECRET, SECRET, small_set

from oml_fast.fingerprint import FingerprintSet
from oml_fast.secret import commitment


def drawn(fingerprints: FingerprintSet) -> list[list[tuple[int, int | None, tuple[int, ...]]]]:
    return [[(r.slot, r.index, r.token_ids) for r in f.askings["raw"].responses] for f in fingerprints]


@pytest.mark.parametrize("responses", [1, 4])
def test_all_responses_of_a_key_are_drawn_anew(responses: int) -> None:
    made, other = (small_set(8, secret=secret, responses_per_key=responses) for secret in (SECRET, OTHER_SECRET))
    found = redrawn(made, OTHER_SECRET)
    assert drawn(found) == drawn(other) != drawn(made)
    assert found.secret_commitment == commitment(OTHER_SECRET)
    for before, after in zip(made, found, strict=True):
        asking = after.askings["raw"]
        assert replace(asking, responses=before.askings["raw"].responses) == before.askings["raw"]
        for response in asking.responses:
            assert response.index is not None
            assert response.probs == (asking.window.probs[response.index],)
            assert response.text == asking.window.texts[response.index]


def test_the_same_secret_draws_the_same() -> None:
    made = small_set(8, responses_per_key=4)
    assert drawn(redrawn(made, SECRET)) == drawn(made)
