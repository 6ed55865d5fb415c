"""A report edited by hand is caught, wherever it was edited; so is an opening. Mostly refusals."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from reports import OTHER_KEY, SIGNING_KEY, TESTS, Made, another, edited, failed, found, make, places
from sets import OTHER_SECRET, SECRET, carrier, inside, small_set, without_windows

from oml_fast import report
from oml_fast.commit import CommitmentError
from oml_fast.errors import InvalidArgumentError
from oml_fast.signing import sign_document
from oml_fast.verify import ExactMatch, MatchRule, PrefixMatch, WithinMatch, verify
from oml_fast.verify.replay import fixed_log10_p, replay

TRUSTED = SIGNING_KEY.verification_key
NOT_COMPUTED = {  # what only a signature can hold: names, versions and times that follow from nothing else
    *(("created",), ("licensee",), ("set_name",), ("suspect", "name"), ("verification", "completer")),
    *(("verification", name) for name in ("identity", "test_reason", "attempt", "oml_fast_version", "set_digest")),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("report"))


@pytest.mark.parametrize("mode", ["sequential", "fixed"])
@pytest.mark.parametrize("test", TESTS)
def test_a_third_party_computes_the_verdict_from_report_and_opened_leaves_alone(
    tmp_path: Path, test: str, mode: str
) -> None:
    for verdict in ("match", "no_match"):
        made = make(tmp_path / verdict, verdict=verdict, test=test, mode=mode, count=40)
        document = json.loads(json.dumps(made.signed))
        findings = report.check(document, json.loads(json.dumps(made.opening(document))), TRUSTED)
        assert findings.ok
        unseen = [] if test in ("rank", "forced_choice") else ["base"]
        assert [f.what for f in findings if f.ok is None] == ["timestamps", *unseen]
        assert found("verdict", document, made.opening(document))[1].startswith(f"{verdict}, computed anew from")


@pytest.mark.parametrize(("rule", "settings"), [("prefix", {}), ("within-3", {}), ("exact", {"response_length": 3})])
def test_other_rules_and_longer_responses(tmp_path: Path, rule: str, settings: dict[str, Any]) -> None:
    made = make(tmp_path, rule=rule, formats=("raw",), **settings)
    assert report.check(made.signed, made.opening(), TRUSTED).ok


def test_several_responses_and_answers_beside_them(tmp_path: Path) -> None:
    made = make(
        tmp_path,
        suspect=lambda s: inside(s, [i % 9 - 1 for i in range(40)]),
        count=40,
        verdict="inconclusive",
        responses_per_key=2,
        mode="fixed",
    )
    assert report.check(made.document, made.opening()).ok


def test_keys_without_an_answer_stay_so(tmp_path: Path) -> None:
    def silent(made: Any) -> Any:
        prompts = [a.prompt_ids for f in list(made)[:3] for a in f.askings.values()]
        return carrier(made, unanswered=prompts)

    made = make(tmp_path, suspect=silent, mode="fixed")
    assert made.verification.unanswered == 3
    opening = made.opening()
    assert sum(each["answer"] is None for each in opening["answers"]) == 6
    assert report.check(made.document, opening).ok
    place = next(i for i, each in enumerate(opening["answers"]) if each["answer"] is None)
    given = next(each for each in opening["answers"] if each["answer"] is not None)
    for name in ("answer", "salt"):
        assert failed(made.document, edited(opening, ("answers", place, name), given[name]))


def test_any_edit_of_a_signed_report_is_seen(made: Made) -> None:
    signed = made.signed
    everywhere = [place for place in places(signed) if place[:2] != ("verification", "keys") or place[2] in (0, 6)]
    assert len(everywhere) > 80
    for place in everywhere:
        changed = edited(signed, place, another)
        assert failed(changed, trusted=TRUSTED), place
        assert not report.check(changed).ok, place


def test_an_unsigned_edit_is_seen_wherever_a_figure_or_a_word_follows_from_the_rest(made: Made) -> None:
    document = made.document
    missed = {place for place in places(document) if not failed(edited(document, place, another))}
    missed -= {place for place in missed if place[0] == "answers" or place[-1] == "number"}  # that the opening shows
    missed -= {("verification", "seconds")} | NOT_COMPUTED
    # One outcome edited with everything that follows from it is the owner's word; a single edit never is.
    assert missed == set()


def test_every_edit_of_an_unsigned_report_shows_beside_its_opening(made: Made) -> None:
    opening = made.opening()
    for place in places(made.document):
        assert "leaves" in failed(edited(made.document, place, another), opening) or failed(
            edited(made.document, place, another)
        ), place


@pytest.mark.parametrize("name", ["verification", "suspect", "commitment", "headline", "keys", "format", "answers"])
def test_a_part_left_out_is_named(made: Made, name: str) -> None:
    document = copy.deepcopy(made.document)
    (document["verification"] if name == "keys" else document).pop(name)
    findings = report.check(document)
    assert [f.what for f in findings] == ["form"]
    assert repr(name) in findings.found[0].sentence


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (("format",), 2, "format"),
        (("format",), "1", "format"),
        (("kind",), "something else", "kind"),
        (("more",), 1, "more"),
        (("verification", "more"), 1, "more"),
        (("verification", "keys"), [], "keys"),
        (("verification", "verdict"), "guilty", "verdict"),
        (("verification", "false_positive_rate"), 0.0, "false_positive_rate"),
        (("verification", "queried"), True, "queried"),
        (("verification", "responses_per_key"), 2**31, "responses_per_key"),
        (("verification", "keys", 0, "trials", 0, "probs"), [0.0, 1.0], "probs"),
        (("suspect", "name"), "", "name"),
        (("suspect", "name"), "\ud800", "half a character"),
        (("created",), "yesterday", "created"),
        (("created",), "2026-11-22T09:30:00Z\n", "created"),
    ],
)
def test_an_unknown_form_is_refused(made: Made, place: tuple[Any, ...], value: Any, named: str) -> None:
    (finding,) = report.check(edited(made.document, place, value))
    assert (finding.what, finding.ok) == ("form", False)
    assert named in finding.sentence


def test_no_edit_makes_the_check_itself_fail(tmp_path: Path) -> None:
    made = make(tmp_path, test="rank", count=5, formats=("raw",), mode="fixed")
    document, opening = made.signed, made.opening()
    draw = random.Random(2)  # noqa: S311 - which edits to try
    values = (0, -1, 2**32 - 1, 1e-300, 1.0, 10**400, float("nan"), "", "0" * 64, [], None, True)
    for place in places(document):
        report.check(edited(document, place, draw.choice(values)), opening)
    for place in places(opening):
        report.check(document, edited(opening, place, draw.choice(values)))


@pytest.mark.parametrize("value", [None, [], "report", 1, {}, {"format": 1}])
def test_what_is_no_report_is_refused(value: Any) -> None:
    assert failed(value) == ["form"]


def test_a_verdict_turned_round_with_all_that_is_easy_to_turn(tmp_path: Path) -> None:
    made = make(tmp_path, verdict="no_match")
    match = make(tmp_path / "match").document
    v = made.document["verification"]
    turned = {
        **made.document,
        "headline": match["headline"],
        "verification": {
            **v,
            "verdict": "match",
            "reason": match["verification"]["reason"],
            "p_value": 1e-9,
            "log10_p_value": -9.0,
        },
    }
    ok, sentence = found("figures", turned)
    assert ok is False
    for name in ("verdict", "p_value", "log10_p_value"):
        assert name in sentence


def test_an_outcome_turned_with_everything_that_follows_is_caught_by_the_opening(tmp_path: Path) -> None:
    """The owner's own forgery: the report is made anew, and signed, from outcomes that were not."""
    made = make(
        tmp_path, suspect=lambda s: inside(s, [1] * 16), count=16, formats=("raw",), mode="fixed", verdict="no_match"
    )
    keys = tuple(
        replace(key, matched=True, matched_formats=("raw",), trials=(replace(key.trials[0], outcome=0),))
        for key in made.verification.keys
    )
    value = {**made.verification.to_json(), "keys": json.loads(json.dumps([asdict(key) for key in keys]))}
    value |= {"fsr_by_format": {"raw": 1.0}}
    value |= {name: each for name, each in replay(value).items() if name != "log10_e"}
    value["fixed_log10_p"] = {"window": fixed_log10_p("window", [key.trials for key in keys])}
    forged = json.loads(
        json.dumps(
            {**made.document, "verification": value, "headline": "match: the suspect model carries these fingerprints."}
        )
    )
    assert value["verdict"] == "match"
    forged["assumptions"] = report.words.assumptions(forged)
    assert report.check(forged).ok
    opening = {**made.opening(), "report": report.report_digest(forged)}
    assert failed(forged, opening) == ["verdict"]
    assert "matched of key" in found("verdict", forged, opening)[1]


def test_signatures(made: Made) -> None:
    signed = made.signed
    assert found("signature", signed, trusted=TRUSTED)[0] is True
    assert found("signature", signed) == (None, found("signature", signed)[1])
    assert TRUSTED.kid in found("signature", signed)[1]
    assert found("signature", made.document)[0] is None
    assert "not signed" in found("signature", made.document)[1]
    assert failed(made.document, trusted=TRUSTED) == ["signature"]
    other = sign_document(made.document, OTHER_KEY)
    assert failed(other, trusted=TRUSTED) == ["signature"]
    assert "trusted" in found("signature", other, trusted=TRUSTED)[1]


@pytest.mark.parametrize("name", ["kid", "value", "verification_key", "algorithm"])
def test_a_signature_without_a_part(made: Made, name: str) -> None:
    signed = copy.deepcopy(made.signed)
    del signed["signature"][name]
    assert failed(signed) == ["form"]


def test_every_part_of_an_opening_counts(made: Made) -> None:
    opening = made.opening()
    for place in places(opening):
        changed = edited(opening, place, another)
        assert failed(made.document, changed), place


def test_what_fails_is_what_was_edited(made: Made) -> None:
    opening, document = made.opening(), made.document
    edits: list[tuple[tuple[Any, ...], Any, str]] = [
        (("report",), another, "leaves"),
        (("leaves", 0, "content"), lambda text: text.replace("Clé", "Cle"), "leaves"),
        (("leaves", 1, "salt"), another, "leaves"),
        (("leaves", 2, "proof", 0), another, "leaves"),
        (("leaves", 2, "proof"), lambda proof: proof[:-1], "leaves"),
        (("leaves", 0, "index"), another, "leaves"),
        (("leaves",), lambda leaves: leaves[::-1], "leaves"),
        (("leaves",), lambda leaves: leaves[:-1], "leaves"),
        (("leaves",), lambda leaves: [*leaves, leaves[0]], "leaves"),
        (("answers", 0, "salt"), another, "answers"),
        (("answers", 0, "answer", "text"), "something else", "answers"),
        (("answers", 1, "answer", "token_ids"), [5], "answers"),
        (("answers", 1, "answer", "reasoning"), "hm", "answers"),
        (("answers", 1, "answer"), None, "answers"),
        (("answers",), lambda answers: answers[::-1], "answers"),
        (("answers",), lambda answers: answers[:-1], "answers"),
        (("answers",), lambda answers: [*answers, answers[0]], "answers"),
    ]
    for place, new, what in edits:
        assert what in failed(document, edited(opening, place, new)), place


@pytest.mark.parametrize("value", [[], "opening", 1, {}, {"format": 1}])
def test_what_is_no_opening_is_refused(made: Made, value: Any) -> None:
    assert failed(made.document, value) == ["leaves", "answers", "verdict", "base"]


def test_without_an_opening_the_outcomes_are_the_owner_s_word(made: Made) -> None:
    assert found("opening", made.document) == (None, "none is given: the outcomes of the keys are the owner's word.")


def test_the_opening_of_another_report_is_refused(made: Made, tmp_path: Path) -> None:
    other = make(tmp_path)
    assert "leaves" in failed(made.document, other.opening())
    assert "another report" in found("leaves", made.document, other.opening())[1]


def test_an_opening_holds_the_keys_asked_and_no_others(made: Made) -> None:
    asked = {key.number for key in made.verification.keys}
    told = json.dumps(made.opening(), ensure_ascii=False)
    for fingerprint in made.fingerprints:
        shown = f'\\"key\\":\\"{fingerprint.key}\\"' in told
        assert shown is (fingerprint.number in asked)
    assert SECRET.hex() not in told


def test_opening_refuses_what_does_not_belong(made: Made, tmp_path: Path) -> None:
    answers = report.read_answers(made.document, made.answers)
    opening: Callable[..., Any] = report.open_report
    with pytest.raises(InvalidArgumentError, match="no commitment"):
        opening(report.document(made.verification, suspect="s"), made.fingerprints, SECRET, answers)
    with pytest.raises(InvalidArgumentError, match=r"no digests.*--out and --secret"):
        opening({**made.document, "answers": None}, made.fingerprints, SECRET, answers)
    with pytest.raises(InvalidArgumentError, match="not the fingerprint set"):
        opening(made.document, small_set(5), SECRET, answers)
    with pytest.raises(CommitmentError, match="another secret"):
        opening(made.document, made.fingerprints, OTHER_SECRET, answers)
    first = made.verification.keys[0].number
    for left in ({}, {**answers, (first, "raw"): answers[made.verification.keys[1].number, "raw"]}):
        with pytest.raises(InvalidArgumentError, match=f"key {first} \\((raw|chat)\\) is missing or is not"):
            opening(made.document, made.fingerprints, SECRET, left)
    other = make(tmp_path, test="count")
    with pytest.raises(InvalidArgumentError, match=r"another verification \(test differ"):
        report.read_answers(made.document, other.answers)


@pytest.mark.parametrize("rule", [ExactMatch(), PrefixMatch(), WithinMatch(3)], ids=lambda rule: rule.name)
@pytest.mark.parametrize("text_only", [False, True], ids=["ids", "text"])
def test_an_honest_report_on_an_imported_set_holds(rule: MatchRule, text_only: bool) -> None:
    made = without_windows(small_set(32))
    verification = verify(made, carrier(small_set(32), text_only=text_only), rule=rule, mode="fixed")
    assert verification.matches == 32
    assert report.check(report.document(verification, suspect="leak")).ok
