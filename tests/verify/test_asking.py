"""Which test is chosen for which suspect and set, and what is refused before a key is spent."""

from __future__ import annotations

from typing import Any

import pytest
from sets import Scripted, carrier, small_set, without_windows

from oml_fast.completer import CHOOSE, SCORE, TOP_SCORES, Completion, Prompt
from oml_fast.errors import CompleterError, InvalidArgumentError
from oml_fast.verify import PrefixMatch, WithinMatch, verify

ALL = frozenset({SCORE, TOP_SCORES, CHOOSE})


@pytest.mark.parametrize(
    ("able", "chosen", "words"),
    [
        ({SCORE}, "rank", "log-probabilities"),
        ({SCORE, CHOOSE}, "rank", "log-probabilities"),
        ({CHOOSE}, "forced_choice", "constrained"),
        ({TOP_SCORES, CHOOSE}, "forced_choice", "constrained"),
        ({TOP_SCORES}, "window", "only answers"),
        (set(), "window", "only answers"),
    ],
)
def test_the_strongest_test_is_chosen_before_asking(able: set[str], chosen: str, words: str) -> None:
    made = small_set(16)
    found = verify(made, carrier(made, capabilities=frozenset(able)))
    assert found.test == chosen
    assert words in found.test_reason
    assert found.verdict == "match"
    assert verify(without_windows(made), carrier(made, capabilities=frozenset(able))).test == "count"


@pytest.mark.parametrize("test", ["rank", "forced_choice", "window", "count"])
def test_the_owner_may_choose(test: str) -> None:
    made = small_set(16)
    found = verify(made, carrier(made, capabilities=ALL), test=test)
    assert (found.test, found.verdict) == (test, "match")
    assert "owner" in found.test_reason


def test_top_scores_do_for_a_rank_test_that_is_asked_for() -> None:
    made = small_set(16)
    assert verify(made, carrier(made, capabilities=frozenset({TOP_SCORES})), test="rank").verdict == "match"


@pytest.mark.parametrize("test", ["rank", "forced_choice", "window"])
def test_a_set_without_windows_can_only_be_counted(test: str) -> None:
    made = small_set(8)
    suspect = carrier(made, capabilities=ALL)
    with pytest.raises(InvalidArgumentError, match=f"which the {test} test needs: choose --test count"):
        verify(without_windows(made), suspect, test=test)
    assert suspect.calls == []


@pytest.mark.parametrize(
    ("test", "able"), [("rank", {CHOOSE}), ("rank", set()), ("forced_choice", {SCORE}), ("forced_choice", {TOP_SCORES})]
)
def test_what_the_suspect_cannot_do_is_refused_before_a_key_is_spent(test: str, able: set[str]) -> None:
    made = small_set(8)
    suspect = carrier(made, capabilities=frozenset(able))
    with pytest.raises(InvalidArgumentError, match=r"scripted .* choose --test window"):
        verify(made, suspect, test=test)
    assert suspect.calls == []


@pytest.mark.parametrize("test", ["rank", "forced_choice", "window", "count"])
def test_a_suspect_that_tells_only_text_gets_the_same_verdict(test: str) -> None:
    made = small_set(16, formats=("raw", "chat"))
    by_ids = verify(made, carrier(made, kept=12, capabilities=ALL), test=test)
    by_text = verify(made, carrier(made, kept=12, capabilities=ALL, text_only=True), test=test)
    for name in ("verdict", "matches", "queried", "log10_p_value", "keys", "log10_miss"):
        assert getattr(by_ids, name) == getattr(by_text, name)


def test_prompts_carry_key_and_format_and_the_rules_length() -> None:
    seen: list[tuple[list[Any], int]] = []

    class Recording(Scripted):
        def complete(self, prompts: Any, length: int) -> list[Completion | None]:
            seen.append((list(prompts), length))
            return super().complete(prompts, length)

    made = small_set(3, formats=("raw", "chat"), response_length=4)
    verify(made, Recording(), rule=WithinMatch(6), mode="fixed")
    for (prompts, length), name in zip(seen, ("raw", "chat"), strict=True):
        assert length == 9
        for prompt, fingerprint in zip(prompts, made, strict=True):
            assert isinstance(prompt, Prompt)
            assert tuple(prompt) == fingerprint.askings[name].prompt_ids
            assert (prompt.key, prompt.format) == (fingerprint.key, name)


@pytest.mark.parametrize("test", ["rank", "forced_choice", "window"])
@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_wrong_number_of_answers_is_the_completers_fault(test: str, wrong: int) -> None:
    class Miscounting(Scripted):
        def _said(self, prompt: Any, ids: Any) -> Completion | None:
            return Completion((7,), "x")

        def score(self, prompts: Any, candidates: Any, length: int) -> list[Completion | None]:
            return (super().score(prompts, candidates, length) * 2)[: len(prompts) + wrong]

        def choose(self, prompts: Any, candidates: Any) -> list[Completion | None]:
            return (super().choose(prompts, candidates) * 2)[: len(prompts) + wrong]

        def complete(self, prompts: Any, length: int) -> list[Completion | None]:
            found = super().complete(prompts, length)
            return found if test == "rank" else (found * 2)[: len(prompts) + wrong]

    with pytest.raises(CompleterError, match="it must give one for each, in order"):
        verify(small_set(8), Miscounting(capabilities=ALL), test=test, mode="fixed")


def test_a_choice_of_several_ids_is_the_completers_fault() -> None:
    class Talkative(Scripted):
        def choose(self, prompts: Any, candidates: Any) -> list[Completion | None]:
            return [Completion((c[0], c[0]), "") for c in candidates]

    with pytest.raises(CompleterError, match="2 token ids where 1"):
        verify(small_set(8), Talkative(capabilities=ALL), test="forced_choice")


@pytest.mark.parametrize("rule", [PrefixMatch(), WithinMatch(4)], ids=lambda rule: rule.name)
def test_other_rules_end_to_end(rule: Any) -> None:
    made = small_set(16, response_length=2)
    late = {p: (5,) * (rule.length(2) - len(ids)) + ids for p, ids in carrier(made).answers.items()}
    found = verify(made, Scripted(late), rule=rule, mode="fixed")
    assert (found.matches, found.verdict, found.match_rule) == (16, "match", rule.name)
    assert verify(made, Scripted(late), mode="fixed", rule=rule, test="count").verdict == "match"
