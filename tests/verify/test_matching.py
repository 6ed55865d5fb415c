"""Exact match, and the candidates that an answer touches."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oml_fast.completer import Completion
from oml_fast.fingerprint import Asking, Response, Window
from oml_fast.verify import ExactMatch, MatchRule

RULE: MatchRule = ExactMatch()
WINDOW = Window((7, 8, 9), (" a1", " b2", " c3"), (0.1, 0.05, 0.05))


def response(*ids: int) -> Response:
    return Response(0, WINDOW.token_ids.index(ids[0]), "", ids, tuple(0.1 for _ in ids))


def asking(*responses: Response) -> Asking:
    return Asking((1, 2), WINDOW, 4, 0.81, responses)


def test_the_same_ids_match_whatever_the_text() -> None:
    assert RULE.matches(Completion((8, 4), "anything"), response(8, 4))


@pytest.mark.parametrize("answer", [(), (8,), (8, 4, 5), (8, 5), (4, 8), (7, 4)])
def test_anything_else_does_not(answer: tuple[int, ...]) -> None:
    assert not RULE.matches(Completion(answer, "8 4"), response(8, 4))


@pytest.mark.parametrize(("answer", "c"), [((), 0), ((8,), 1), ((8, 99), 1), ((99, 8), 0), ((99,), 0)])
def test_only_the_first_token_id_touches_the_window(answer: tuple[int, ...], c: int) -> None:
    assert RULE.satisfied(Completion(answer, ""), asking(response(8, 4))) == c


@settings(deadline=None)
@given(answer=st.lists(st.integers(6, 11), max_size=3).map(tuple), drawn=st.permutations((7, 8, 9)))
def test_c_counts_every_candidate_that_could_match(answer: tuple[int, ...], drawn: list[int]) -> None:
    """Over all candidates as the response, the rule accepts at most c, and c does not depend on the draw."""
    completion = Completion(answer, "")
    one_token = sum(RULE.matches(completion, response(first)) for first in drawn)
    with_tails = sum(RULE.matches(completion, response(first, 6)) for first in drawn)
    c = RULE.satisfied(completion, asking(response(drawn[0])))
    assert c == RULE.satisfied(completion, asking(response(drawn[1])))
    assert max(one_token, with_tails) <= c
    if len(answer) == 1:
        assert one_token == c
