"""Each match rule by ids and by text, and the candidates that a completion touches under it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sets import Scripted, small_set

from oml_fast.completer import Completion
from oml_fast.errors import InvalidArgumentError
from oml_fast.fingerprint import Asking, Response, Window
from oml_fast.verify import ExactMatch, MatchRule, PrefixMatch, WithinMatch, match_rule, verify

RULES: list[MatchRule] = [ExactMatch(), PrefixMatch(), WithinMatch(1), WithinMatch(3)]
WINDOW = Window((7, 8, 9), (" a1", " b2", " c3"), (0.1, 0.05, 0.05))
# Texts that differ only in space (6, 7), or begin each other (7, 8, 10).
ALIKE = Window((6, 7, 8, 9, 10), ("ab", " ab", "abc", " d", " abcd"), (0.04,) * 5)
WORDS = {6: "ab", 7: " ab", 8: "abc", 9: " d", 10: " abcd", 11: "c", 12: " x", 13: ".", 14: "\n"}


def text_of(ids: tuple[int, ...]) -> str:
    return "".join(WORDS[i] for i in ids)


def response(*ids: int, window: Window = WINDOW, text: str | None = None) -> Response:
    index = window.token_ids.index(ids[0])
    return Response(0, index, window.texts[index] if text is None else text, ids, tuple(0.1 for _ in ids))


def asking(*responses: Response, window: Window = WINDOW) -> Asking:
    return Asking((1, 2), window, 4, 0.81, responses)


def said(text: str, reasoning: str = "") -> Completion:
    return Completion((), text, reasoning)


EXACT = ExactMatch()


def test_the_same_ids_match_whatever_the_text() -> None:
    assert EXACT.matches(Completion((8, 4), "anything"), response(8, 4))


@pytest.mark.parametrize("answer", [(8,), (8, 4, 5), (8, 5), (4, 8), (7, 4)])
def test_anything_else_does_not(answer: tuple[int, ...]) -> None:
    assert not EXACT.matches(Completion(answer, " b2"), response(8, 4))


@pytest.mark.parametrize(
    ("answer", "touched"), [((8,), (1,)), ((8, 99), (1,)), ((99, 8), ()), ((99,), ()), ((7, 9), (0,))]
)
def test_only_the_first_token_id_touches_the_window(answer: tuple[int, ...], touched: tuple[int, ...]) -> None:
    assert EXACT.satisfied(Completion(answer, " c3"), asking(response(8, 4))) == touched
    assert PrefixMatch().satisfied(Completion(answer, " c3"), asking(response(8, 4))) == touched


@pytest.mark.parametrize(
    ("rule", "answer", "match", "touched"),
    [
        (ExactMatch(), " b2", True, (1,)),
        (ExactMatch(), "b2\n", True, (1,)),  # endpoints trim
        (ExactMatch(), "b2 and more", False, ()),
        (ExactMatch(), "b", False, ()),
        (ExactMatch(), "", False, ()),
        (ExactMatch(), " \n", False, ()),
        (ExactMatch(), "B2", False, ()),
        (PrefixMatch(), "\n b2 and more", True, (1,)),
        (PrefixMatch(), "b22", True, (1,)),
        (PrefixMatch(), "it is b2", False, ()),
        (PrefixMatch(), "", False, ()),
        (WithinMatch(3), "it is b2", True, (1,)),
        (WithinMatch(2), "it is b2", False, ()),
        (WithinMatch(3), "a1 c3 b2", True, (0, 1, 2)),
        (WithinMatch(3), "xb2 b", False, ()),  # only at the start of a word
        (WithinMatch(1), "  b2x", True, (1,)),
        (WithinMatch(4), "", False, ()),
    ],
)
def test_texts(rule: MatchRule, answer: str, match: bool, touched: tuple[int, ...]) -> None:
    assert rule.matches(said(answer), response(8)) is match
    assert rule.satisfied(said(answer), asking(response(8))) == touched
    assert rule.satisfied(said(answer), asking(response(7))) == touched  # whatever was drawn


def test_reasoning_counts_within_and_nowhere_else() -> None:
    thought = said("no idea", "could be b2")
    assert WithinMatch(3).matches(thought, response(8))
    assert WithinMatch(3).satisfied(thought, asking(response(8))) == (1,)
    assert not WithinMatch(2).matches(thought, response(8))
    for rule in (ExactMatch(), PrefixMatch()):
        assert not rule.matches(said("", "b2"), response(8))
        assert rule.satisfied(said("", "b2"), asking(response(8))) == ()


def test_ids_decide_where_there_are_any() -> None:
    for rule in RULES:
        assert not rule.matches(Completion((99,), " b2"), response(8))
        assert rule.satisfied(Completion((99,), " b2"), asking(response(8))) == ()


def test_within_begins_at_each_of_the_first_ids() -> None:
    rule = WithinMatch(3)
    assert rule.length(4) == 6
    assert rule.matches(Completion((99, 99, 8, 4), ""), response(8, 4))
    assert not rule.matches(Completion((99, 99, 99, 8, 4), ""), response(8, 4))
    assert not rule.matches(Completion((99, 99, 8), ""), response(8, 4))  # the tail did not come
    assert rule.satisfied(Completion((99, 9, 8, 7), ""), asking(response(8, 4))) == (1, 2)


@pytest.mark.parametrize(
    ("rule", "answer", "touched"),
    [
        (ExactMatch(), "ab", (0, 1)),
        (ExactMatch(), "abc", (2,)),
        (PrefixMatch(), "abc", (0, 1, 2)),
        (PrefixMatch(), "abcdef", (0, 1, 2, 4)),
        (WithinMatch(2), "d abc", (0, 1, 2, 3)),
    ],
)
def test_candidates_that_are_alike_or_begin_each_other_are_all_counted(
    rule: MatchRule, answer: str, touched: tuple[int, ...]
) -> None:
    assert rule.satisfied(said(answer), asking(response(7, window=ALIKE), window=ALIKE)) == touched


def test_longer_responses_by_text_touch_what_the_answer_begins_with() -> None:
    long = response(8, 4, text=" b2 tail")
    assert EXACT.matches(said("b2 tail "), long)
    assert not EXACT.matches(said("b2 tails"), long)
    assert PrefixMatch().matches(said(" b2 tails"), long)
    for rule in (ExactMatch(), PrefixMatch()):
        assert rule.satisfied(said("b2 tale"), asking(long)) == (1,)


ids = st.lists(st.sampled_from(sorted(WORDS)), max_size=6).map(tuple)
tails = st.lists(st.sampled_from(sorted(WORDS)), min_size=0, max_size=2).map(tuple)
texts = st.one_of(ids.map(text_of), st.text(alphabet="abcd x.\n\x1f\u00a0", max_size=12))


@settings(deadline=None, max_examples=400)
@given(
    rule=st.sampled_from(RULES),
    answer=ids,
    words=texts,
    thought=texts,
    tail=tails,
    by_text=st.booleans(),
    data=st.data(),
)
def test_whatever_matches_is_counted(
    rule: MatchRule,
    answer: tuple[int, ...],
    words: str,
    thought: str,
    tail: tuple[int, ...],
    by_text: bool,
    data: st.DataObject,
) -> None:
    """For every draw: what could match lies in `satisfied`, which is the same for every draw."""
    completion = Completion((), words, thought) if by_text else Completion(answer, words, thought)
    if by_text and data.draw(st.booleans()):  # an answer near a response
        completion = said(text_of((data.draw(st.sampled_from(ALIKE.token_ids)), *tail)), thought)
    found = set()
    for first in ALIKE.token_ids:
        drawn = response(first, *tail, window=ALIKE, text=text_of((first, *tail)))
        touched = rule.satisfied(completion, asking(drawn, window=ALIKE))
        found.add(touched)
        if rule.matches(completion, drawn):
            assert drawn.index in touched
        elif not tail and (by_text or rule != EXACT or len(answer) < 2):
            assert drawn.index not in touched  # with one token id nothing is counted in vain
    assert len(found) == 1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_any_of_several_responses(rule: MatchRule) -> None:
    made = small_set(12, responses_per_key=3)
    for by_text in (False, True):
        last = {f.askings["raw"].prompt_ids: f.askings["raw"].responses[2].token_ids for f in made}
        found = verify(made, Scripted(last, text_only=by_text), rule=rule, mode="fixed")
        assert found.matches == 12
        assert {trial.probs[0] for key in found.keys for trial in key.trials} == {3 / 16}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_is_found_by_its_name(rule: MatchRule) -> None:
    assert match_rule(rule.name) == rule


@pytest.mark.parametrize(
    "name", ["", "Exact", "within", "within-", "within-0", "within-4097", "within--1", "within-1e3", "exact "]
)
def test_unknown_rules_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        match_rule(name)
