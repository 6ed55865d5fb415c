"""verify from end to end with scripted suspects: what is asked, the verdicts, the refusals."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sets import OUTSIDE, TOKENIZER, Scripted, carrier, inside, small_set

import oml_fast
from oml_fast.completer import CHOOSE, SCORE, Completer, Completion
from oml_fast.errors import CompleterError, FingerprintFormatError, InvalidArgumentError, OmlError
from oml_fast.fingerprint import FingerprintSet
from oml_fast.verify import ExactMatch, MatchRule, PrefixMatch, Verification, WithinMatch, verify
from oml_fast.verify.statistics import count_test
from oml_fast.verify.verdict import Limits, chance, decide, decide_sequential

BOTH = ("raw", "chat")


def fixed(made: FingerprintSet, suspect: Completer, **options: Any) -> Verification:
    return verify(made, suspect, mode="fixed", **options)


def test_the_fingerprinted_model_matches() -> None:
    made = small_set(64)
    verification = fixed(made, carrier(made))
    assert verification.verdict == "match"
    assert (verification.matches, verification.queried, verification.informative) == (64, 64, 64)
    assert verification.fsr == 1.0
    assert verification.log10_p_value == pytest.approx(-64 * math.log10(16))
    assert verification.p_value == pytest.approx(16.0**-64)
    assert verification.bits_per_key == pytest.approx(4.0)
    assert verification.fsr_interval[0] == pytest.approx(0.025 ** (1 / 64))
    assert verification.fsr_interval[1] == 1.0
    assert verification.fixed_log10_p["window"] == verification.log10_p_value
    assert set(verification.fixed_log10_p) == {"window", "count"}


def test_an_innocent_model_does_not() -> None:
    verification = fixed(small_set(64), Scripted())
    assert verification.verdict == "no_match"
    assert (verification.matches, verification.informative, verification.p_value) == (0, 0, 1.0)
    assert verification.bits_per_key == 0.0


def test_too_few_keys_are_inconclusive() -> None:
    made = small_set(8)
    verification = fixed(made, carrier(made, kept=3))
    assert verification.verdict == "inconclusive"
    assert "too few to say match" in verification.reason


def test_a_verdict_survives_a_small_fsr_by_the_window_test_alone() -> None:
    made = small_set(200, width=3)
    suspect = carrier(made, kept=20)
    window, count = fixed(made, suspect), fixed(made, suspect, test="count")
    assert window.verdict == "match"
    assert window.fsr == 0.1
    assert count.verdict == "no_match"
    assert window.fixed_log10_p == count.fixed_log10_p
    assert window.fixed_log10_p == {"window": window.log10_p_value, "count": count.log10_p_value}


def test_the_limit_itself_convicts() -> None:
    made = small_set(6, width=10)
    suspect = carrier(made)  # 10**-6 exactly
    assert fixed(made, suspect, false_positive_rate=1e-6).verdict == "match"
    assert fixed(made, suspect, false_positive_rate=0.99e-6).verdict == "inconclusive"


def test_the_first_keys_are_asked_in_file_order_one_call_for_each_format() -> None:
    made = small_set(9, formats=BOTH)
    suspect = carrier(made)
    seen: list[list[tuple[int, ...]]] = []

    class Recording(Scripted):
        def complete(self, prompts: Any, length: int) -> list[Completion]:
            seen.append([tuple(prompt) for prompt in prompts])
            assert length == 1
            return super().complete(prompts, length)

    verification = fixed(made, Recording(suspect.answers), num_keys=4)
    first = made.fingerprints[:4]
    assert seen == [[fingerprint.askings[name].prompt_ids for fingerprint in first] for name in BOTH]
    assert [key.number for key in verification.keys] == [0, 1, 2, 3]
    assert (verification.queried, verification.num_fingerprints) == (4, 9)


def test_formats_of_one_key_are_one_trial() -> None:
    made = small_set(10, formats=BOTH)
    verification = fixed(made, carrier(made))
    assert (verification.matches, verification.queried) == (10, 10)
    assert verification.log10_p_value == pytest.approx(10 * math.log10(31 / 256))
    only_chat = fixed(made, carrier(made, formats=["chat"]))
    assert only_chat.fsr_by_format == {"raw": 0.0, "chat": 1.0}
    assert only_chat.matches == 10
    assert only_chat.log10_p_value == pytest.approx(-10 * math.log10(16))
    assert only_chat.fixed_log10_p["count"] == pytest.approx(10 * math.log10(31 / 256))
    assert only_chat.keys[0].satisfied == {"raw": 0, "chat": 1}
    assert only_chat.keys[0].matched_formats == ("chat",)


def test_any_of_several_responses_matches() -> None:
    made = small_set(20, responses_per_key=3)
    second = {f.askings["raw"].prompt_ids: f.askings["raw"].responses[1].token_ids for f in made}
    verification = fixed(made, Scripted(second))
    assert verification.matches == 20
    assert verification.log10_p_value == pytest.approx(20 * math.log10(3 / 16))


def test_a_wrong_tail_is_no_match_but_touches_the_window() -> None:
    made = small_set(20, response_length=4)
    assert fixed(made, carrier(made)).log10_p_value == pytest.approx(-20 * math.log10(16))
    drawn = [f.askings["raw"].responses[0].index for f in made]
    wrong = fixed(made, inside(made, [index or 0 for index in drawn]))
    assert (wrong.matches, wrong.informative, wrong.p_value) == (0, 20, 1.0)


def test_an_answer_cut_short_is_no_match() -> None:
    made = small_set(4, response_length=4)
    short = {prompt: answer[:3] for prompt, answer in carrier(made).answers.items()}
    assert fixed(made, Scripted(short)).matches == 0
    assert fixed(made, Scripted(dict.fromkeys(short, ()))).informative == 0


def test_wrong_answers_inside_the_window_cost_evidence() -> None:
    made = small_set(30)
    drawn = [f.askings["raw"].responses[0].index or 0 for f in made]
    right = fixed(made, inside(made, [i if n < 10 else -1 for n, i in enumerate(drawn)]))
    noisy = fixed(made, inside(made, [i if n < 10 else (i + 1) % 16 for n, i in enumerate(drawn)]))
    assert right.matches == noisy.matches == 10
    assert (right.informative, noisy.informative) == (10, 30)
    assert right.log10_p_value < noisy.log10_p_value


def test_json_carries_the_contract_and_no_secret() -> None:
    made = small_set(16, formats=BOTH)
    verification = fixed(made, carrier(made))
    value = verification.to_json()
    contract = {"queried", "matches", "fsr", "fsr_interval", "test", "p_value", "log10_p_value", "false_positive_rate"}
    contract |= {"verdict", "reason", "bits_per_key", "completer", "seconds", "fingerprints_per_second", "informative"}
    contract |= {"fsr_by_format", "set_digest", "identity", "smallest_fsr", "miss_rate", "oml_fast_version", "keys"}
    assert contract <= set(value)
    assert value["set_digest"] == made.digest()
    assert value["oml_fast_version"] == oml_fast.__version__
    assert set(value["keys"][0]) == {
        "number",
        "matched",
        "matched_formats",
        "satisfied",
        "answered",
        "trials",
        "base",
        "log10_e",
    }
    text = json.dumps(value, allow_nan=False)
    assert json.loads(text) == value
    for fingerprint in made:
        assert fingerprint.key not in text
        for asking in fingerprint.askings.values():
            assert not any(candidate in text for candidate in asking.window.texts)


def test_underflow_keeps_its_log() -> None:
    made = small_set(300)
    verification = fixed(made, carrier(made))
    assert verification.p_value == 0.0
    assert verification.log10_p_value == pytest.approx(-300 * math.log10(16))
    assert verification.verdict == "match"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_keys": 0}, ["0", "8"]),
        ({"num_keys": -1}, ["-1", "8"]),
        ({"num_keys": 9}, ["9", "8"]),
        ({"test": "rank"}, ["scripted", "log-probabilities", "--test window"]),
        ({"test": "forced_choice"}, ["scripted", "no constraint", "--test window"]),
        ({"test": "best"}, ["'best'", "auto", "rank", "forced_choice", "window", "count"]),
        ({"mode": "quick"}, ["'quick'", "sequential", "fixed"]),
        ({"order": [0, 1, 2]}, ["order"]),
        ({"order": [0, 1, 2, 3, 4, 5, 6, 6]}, ["order"]),
        ({"false_positive_rate": 0.0}, ["false-positive rate", "0.0"]),
        ({"false_positive_rate": 1.0}, ["false-positive rate", "1.0"]),
        ({"false_positive_rate": math.nan}, ["nan"]),
        ({"smallest_fsr": 0.0}, ["smallest FSR"]),
        ({"smallest_fsr": 1.0}, ["smallest FSR"]),
        ({"miss_rate": 0.0}, ["miss rate"]),
        ({"miss_rate": 1.5}, ["miss rate", "1.5"]),
    ],
)
def test_refused_before_a_key_is_spent(options: dict[str, Any], words: list[str]) -> None:
    made = small_set(8)
    suspect = carrier(made)
    with pytest.raises(InvalidArgumentError) as caught:
        verify(made, suspect, **options)
    assert suspect.calls == []
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


def test_another_tokenizer_is_refused_before_a_key_is_spent() -> None:
    made = small_set(8)
    suspect = replace(carrier(made), tokenizer_digest="ef" * 32)
    with pytest.raises(InvalidArgumentError) as caught:
        fixed(made, suspect)
    assert suspect.calls == []
    assert all(word in str(caught.value) for word in ("ef" * 32, TOKENIZER, "read the suspect with"))


def test_an_empty_set_and_keys_that_share_ids_are_refused() -> None:
    made = small_set(2)
    with pytest.raises(InvalidArgumentError, match="the set has 0"):
        fixed(replace(made, fingerprints=()), Scripted())
    with pytest.raises(InvalidArgumentError, match=r"the same (key ids|number)"):
        fixed(replace(made, fingerprints=(made.fingerprints[0],) * 2), Scripted())


@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_wrong_number_of_completions_is_a_completers_fault(wrong: int) -> None:
    class Miscounting(Scripted):
        def complete(self, prompts: Any, length: int) -> list[Completion]:
            answers = super().complete(prompts, length)
            return answers[:wrong] if wrong < 0 else answers + answers[:wrong]

    with pytest.raises(CompleterError, match=f"{8 + wrong} completions for 8"):
        fixed(small_set(8), Miscounting())


def test_more_token_ids_than_asked_for_are_a_completers_fault() -> None:
    made = small_set(2)
    with pytest.raises(CompleterError, match="2 token ids where 1"):
        fixed(made, Scripted({made.fingerprints[1].askings["raw"].prompt_ids: (OUTSIDE, OUTSIDE)}))


def test_the_completers_own_error_passes() -> None:
    class Broken(Scripted):
        def complete(self, prompts: Any, length: int) -> list[Completion]:
            raise CompleterError("the endpoint is down: start it.")

    with pytest.raises(CompleterError, match="the endpoint is down"):
        fixed(small_set(2), Broken())


def test_completions_may_hold_lists() -> None:
    made = small_set(3)
    lists: Any = {prompt: list(answer) for prompt, answer in carrier(made).answers.items()}
    assert fixed(made, Scripted(lists)).matches == 3


def test_verification_and_report_need_no_torch() -> None:
    code = "import sys, oml_fast.verify, oml_fast.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_public_name_is_the_function() -> None:
    assert oml_fast.verify is verify
    assert isinstance(oml_fast.verify(small_set(1), Scripted()), Verification)


@pytest.mark.parametrize(
    ("matches", "queried", "verdict"),
    [
        (0, 6, "inconclusive"),
        (0, 7, "no_match"),
        (20, 64, "no_match"),
        (30, 64, "inconclusive"),
        (0, 1, "inconclusive"),
    ],
)
def test_the_rule_without_evidence(matches: int, queried: int, verdict: str) -> None:
    limits = Limits(1e-6, 0.5, 1e-2)
    log10_miss = count_test(queried - matches, queried, 0.5)
    assert decide(-5.9, log10_miss, matches, queried, 0, limits)[0] == verdict
    assert decide(-6.0, log10_miss, matches, queried, 0, limits)[0] == "match"  # evidence first, whatever the FSR


@pytest.mark.parametrize(
    ("log10_p", "words"),
    [(0.0, "1"), (math.log10(0.49), "0.49"), (-2, "one in 100"), (math.log10(1 / 2500), "one in 2,500"),
     (-6, "one in 10^6"), (-38.7, "one in 10^38"), (-818.8, "one in 10^818")],
)  # fmt: skip
def test_chance_in_words(log10_p: float, words: str) -> None:
    assert chance(log10_p) == words


def test_a_fingerprinted_model_needs_few_keys_and_the_base_few() -> None:
    for width, most in ((16, 7), (3, 16)):
        made = small_set(64, width=width)
        assert verify(made, carrier(made)).queried <= most
        base = verify(made, Scripted())
        assert (base.verdict, base.queried <= 10) == ("no_match", True)


def test_keys_are_asked_in_the_order_given() -> None:
    made = small_set(20)
    order = list(range(19, -1, -1))
    assert [key.number for key in verify(made, carrier(made), order=order).keys] == order[:6]


def test_a_number_that_names_two_fingerprints_is_refused_before_a_key_is_spent() -> None:
    """Else one fingerprint is asked again and again: an innocent's one lucky match in 16 would convict it."""
    made = small_set(16)
    same = replace(made, fingerprints=tuple(replace(fingerprint, number=0) for fingerprint in made))
    suspect = carrier(same)
    with pytest.raises(InvalidArgumentError, match="number"):
        verify(same, suspect)
    assert suspect.calls == []


def test_a_file_with_a_number_twice_is_refused(tmp_path: Path) -> None:
    made = small_set(3)
    replace(made, fingerprints=tuple(replace(f, number=1) for f in made)).save(tmp_path / "set.json")
    with pytest.raises(FingerprintFormatError, match="number"):
        FingerprintSet.load(tmp_path / "set.json")


class Repeating:
    """An attempt that hands out the same key again: whose account is broken."""

    id = "attempt"

    def take(self, count: int) -> tuple[int, ...]:
        return (0,) * count

    def ended(self, verdict: str, report: Any) -> None:
        """Nothing to keep."""


def test_a_key_handed_out_twice_is_never_counted_twice() -> None:
    made = small_set(16)
    with pytest.raises(OmlError):
        verify(made, carrier(made), attempt=Repeating())


@pytest.mark.parametrize("rule", [ExactMatch(), PrefixMatch(), WithinMatch(2)], ids=lambda rule: rule.name)
def test_a_response_that_does_not_begin_with_its_candidate_is_no_match_by_text(rule: MatchRule) -> None:
    """By text the two would contradict each other: a match where the window was not touched."""
    made = small_set(2)
    first = made.fingerprints[0]
    asking = first.askings["raw"]
    wrong = replace(asking, responses=(replace(asking.responses[0], text=" elsewhere"),))
    other = replace(made, fingerprints=(replace(first, askings={"raw": wrong}), made.fingerprints[1]))
    suspect = Scripted(texts={asking.prompt_ids: " elsewhere"})
    verification = verify(other, suspect, rule=rule, mode="fixed")
    assert (verification.matches, verification.informative, verification.p_value) == (0, 0, 1.0)


def test_a_few_silent_keys_are_asked_around_and_many_end_the_asking() -> None:
    made = small_set(64)
    prompts = [fingerprint.askings["raw"].prompt_ids for fingerprint in made]
    one = verify(made, Scripted(unanswered=prompts[2:3]))
    assert (one.verdict, one.queried, one.unanswered) == ("no_match", 10, 1)
    all_of_them = verify(made, Scripted(unanswered=prompts))
    assert (all_of_them.verdict, all_of_them.queried) == ("inconclusive", 8)


ABLE = frozenset({SCORE, CHOOSE})


@pytest.mark.parametrize("mode", ["sequential", "fixed"])
@pytest.mark.parametrize("test", ["window", "count", "rank", "forced_choice"])
@pytest.mark.parametrize("carries", [True, False])
def test_a_silent_suspect_is_neither_convicted_nor_acquitted(test: str, mode: str, carries: bool) -> None:
    """Every other key unanswered: they count as no match, and never give no_match."""
    made = small_set(60)
    silent = [f.askings["raw"].prompt_ids for f in made if f.number % 2 == 0]
    suspect = carrier(made, None if carries else 0, capabilities=ABLE, unanswered=silent)
    found = verify(made, suspect, test=test, mode=mode)
    assert found.unanswered == sum(key.number % 2 == 0 for key in found.keys)
    assert not any(key.matched for key in found.keys if key.number % 2 == 0)
    assert found.verdict != "no_match"
    if not carries:
        assert found.verdict == "inconclusive"


def test_one_silence_in_ten_is_borne() -> None:
    made = small_set(60)
    found = fixed(made, Scripted(unanswered=[f.askings["raw"].prompt_ids for f in made.fingerprints[:6]]))
    assert (found.verdict, found.unanswered) == ("no_match", 6)
    found = fixed(made, Scripted(unanswered=[f.askings["raw"].prompt_ids for f in made.fingerprints[:7]]))
    assert (found.verdict, found.unanswered) == ("inconclusive", 7)
    assert "silence" in found.reason


def test_a_suspect_that_answers_nothing_is_inconclusive() -> None:
    made = small_set(30, formats=BOTH)
    everything = [asking.prompt_ids for f in made for asking in f.askings.values()]
    found = verify(made, Scripted(unanswered=everything))
    assert (found.verdict, found.matches, found.informative) == ("inconclusive", 0, 0)
    assert found.p_value == pytest.approx(1.0)
    assert found.unanswered == found.queried


def test_a_sequential_report_agrees_with_its_path() -> None:
    made = small_set(40, width=3)
    found = verify(made, carrier(made, kept=30))
    path = [key.log10_e for key in found.keys]
    assert None not in path
    assert found.log10_p_value == pytest.approx(-max(0.0, *(e for e in path if e is not None)))
    assert found.log10_p_value <= -6


@pytest.mark.parametrize("verdict", ["match", "no_match", "inconclusive"])
def test_sequential_verdicts_in_words(verdict: str) -> None:
    limits = Limits(1e-6, 0.5, 1e-2)
    said, reason = decide_sequential(verdict, -6.5, -2.5, 3, 9, 0, False, limits)
    assert said == verdict
    assert "\n" not in reason
    silent = decide_sequential(verdict, -6.5, -2.5, 3, 9, 2, False, limits)[0]
    assert silent == ("inconclusive" if verdict == "no_match" else verdict)


def test_an_inconclusive_fixed_number_does_not_tempt_to_ask_more() -> None:
    """p-values for a number fixed beforehand do not hold when one looks and goes on; the sequential ones do."""
    found = fixed(small_set(8), carrier(small_set(8), kept=3))
    assert found.verdict == "inconclusive"
    assert "sequential" in found.reason
