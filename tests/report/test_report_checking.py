"""A report edited by hand is caught, wherever it was edited; so is an opening. Mostly refusals."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from reports import BOTH, OTHER_KEY, SIGNING_KEY, TESTS, Made, another, edited, make, places
from sets import OTHER_SECRET, SECRET, Scripted, carrier, inside, small_set

from oml_fast import report
from oml_fast.commit import (
    Commitment,
    CommitmentError,
    TimeStamp,
    asking_order,
    check_timestamps,
    read_roots,
    timestamp_request,
)
from oml_fast.errors import InvalidArgumentError
from oml_fast.signing import sign_document
from oml_fast.verify import verify
from oml_fast.verify.calibration import calibrate
from oml_fast.verify.replay import fixed_log10_p, replay

TRUSTED = SIGNING_KEY.verification_key
NOT_COMPUTED = {  # what only a signature can hold: names, versions and times that follow from nothing else
    *(("created",), ("licensee",), ("set_name",), ("suspect", "name"), ("verification", "completer")),
    *(("verification", name) for name in ("test_reason", "attempt", "oml_fast_version", "set_digest")),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def stamped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Any]:
    """A report with a timestamp of a local authority, and its root; the suspect is younger than that."""
    from authority import Authority

    if shutil.which("openssl") is None:
        pytest.skip("no openssl command here")
    authority = Authority(tmp_path_factory.mktemp("authority") / "one")
    roots = read_roots(authority.root_file)

    def stamp(commitment: Commitment) -> tuple[bytes, TimeStamp]:
        token = authority.reply(timestamp_request(commitment).as_bytes())
        return token, check_timestamps(commitment, [token], roots)[0]

    since = datetime.now(UTC) + timedelta(days=1)
    return make(tmp_path_factory.mktemp("stamped"), stamp=stamp, since=since), roots


def failed(*arguments: Any, **options: Any) -> list[str]:
    """What fails."""
    return [finding.what for finding in report.check(*arguments, **options) if finding.ok is False]


def found(what: str, *arguments: Any, **options: Any) -> tuple[bool | None, str]:
    return next((f.ok, f.sentence) for f in report.check(*arguments, **options) if f.what == what)


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
        assert [f.what for f in findings if f.ok is None] == ["timestamps"]
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


# The opening


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
    assert failed(made.document, value) == ["leaves", "answers", "verdict"]


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
    with pytest.raises(InvalidArgumentError, match="no digests"):
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


# Terms, order, timestamps


@pytest.mark.parametrize(
    ("terms", "named"),
    [
        ({"match_rule": "prefix"}, "match_rule"),
        ({"test": "count"}, "test"),
        ({"mode": "fixed"}, "mode"),
        ({"false_positive_rate": 1e-9}, "false_positive_rate"),
        ({"smallest_fsr": 0.4}, "smallest_fsr"),
        ({"miss_rate": 0.02}, "miss_rate"),
        ({"num_keys": 3}, "queried"),
    ],
)
def test_terms_that_are_not_the_committed_ones(tmp_path: Path, terms: dict[str, Any], named: str) -> None:
    made = make(tmp_path, terms=terms)
    assert failed(made.document) == ["terms"]
    assert named in found("terms", made.document)[1]


def test_a_test_left_to_the_suspect_is_any(tmp_path: Path) -> None:
    assert not failed(make(tmp_path, terms={"test": "auto"}).document)


def test_fewer_keys_than_the_fixed_number(tmp_path: Path) -> None:
    made = make(tmp_path, mode="fixed", num_keys=20, terms={"num_keys": 24})
    assert failed(made.document) == ["terms"]
    assert not failed(make(tmp_path / "all", mode="fixed", num_keys=20).document)


def _reported(made: Made, order: tuple[int, ...], skipped: list[int]) -> dict[str, Any]:
    asked = verify(made.fingerprints, carrier(made.fingerprints), order=order, test="window")
    return report.document(
        asked, suspect="s", commitment=made.commitment, order=asking_order(made.fingerprints, SECRET), skipped=skipped
    )


def test_keys_skipped_are_named_or_missed(made: Made) -> None:
    order = asking_order(made.fingerprints, SECRET)
    later = (*order[2:], *order[:2])
    told = _reported(made, later, [*order[:2], order[20]])
    assert told["skipped"] == [{"number": order[0], "leaf": 0}, {"number": order[1], "leaf": 1}]
    assert found("order", told) == (True, "asked in the committed order; 2 skipped as spent before (places 0, 1).")
    ok, sentence = found("order", _reported(made, later, [order[0]]))
    assert ok is False
    assert "(places 1)" in sentence
    swapped = (order[1], order[0], *order[2:])
    assert "not asked in the committed order" in found("order", _reported(made, swapped, []))[1]


def test_order_refuses(made: Made) -> None:
    document = made.document
    for place, new in [
        (("leaves",), None),
        (("leaves",), lambda leaves: leaves[:-1]),
        (("leaves", -1), 2**31),
        (("skipped",), [{"number": 1, "leaf": 0}]),
        (("skipped",), [{"number": made.verification.keys[0].number, "leaf": None}]),
    ]:
        assert "order" in failed(edited(document, place, new)), place
    without = {**document, "commitment": None, "commitment_digest": None}
    assert "order" in failed(without)


def test_a_commitment_of_another_digest(made: Made) -> None:
    changed = edited(made.document, ("commitment", "merkle_root"), another)
    assert {"terms", "order", "timestamps"} <= set(failed(changed))
    assert "terms" in failed({**made.document, "commitment": None})


def test_timestamps_and_the_kind_of_evidence(stamped: tuple[Made, Any], made: Made) -> None:
    dated, roots = stamped
    assert dated.document["evidence_kind"] != "owner's own evidence"
    assert found("timestamps", dated.document, roots=roots)[0] is True
    assert found("timestamps", dated.document)[0] is None
    assert made.document["evidence_kind"] == "owner's own evidence"
    assert found("timestamps", made.document)[0] is None


def test_timestamps_refuse(stamped: tuple[Made, Any], tmp_path: Path) -> None:
    from authority import Authority

    dated, roots = stamped
    document = dated.document
    other = read_roots(Authority(tmp_path / "other", "Another").root_file)
    assert failed(document, roots=other) == ["timestamps"]
    earlier = edited(document, ("timestamps", 0, "time"), "2020-01-01T00:00:00+00:00")
    assert "timestamps" in failed(earlier)
    assert "timestamps" in failed(earlier, roots=roots)
    for new in ([], ["AAAA"], ["no base64!"], document["timestamp_tokens"] * 2):
        assert failed({**document, "timestamp_tokens": new}, roots=roots), new
    since = edited(document, ("suspect", "known_since"), "2020-01-01T00:00:00Z")
    assert "words" in failed(since)
    assert "words" in failed(edited(document, ("evidence_kind",), "proved"))
    assert "words" in failed(edited(document, ("timestamps", 0, "time"), "noon"))


def test_a_report_of_another_version_is_not_held_to_our_words(made: Made) -> None:
    other = edited(made.document, ("verification", "oml_fast_version"), "9.9.9")
    other = edited(other, ("assumptions",), ["None."])
    assert found("words", other)[0] is None
    assert "words" in failed(edited(other, ("headline",), "guilty"))


def test_a_second_opinion_is_computed_anew(made: Made) -> None:
    opinion = calibrate(made.fingerprints, made.verification, [Scripted()])
    document = report.document(made.verification, suspect="s", second_opinion=opinion)
    assert report.check(document).ok
    for name in ("null_rate", "log10_p_value"):
        assert failed(edited(document, ("second_opinion", name), another)) == ["figures"]
    assert failed(edited(document, ("second_opinion", "models", 0, "matches"), another)) == ["figures"]


def test_formats_of_one_key_are_kept_apart(made: Made) -> None:
    assert set(made.document["verification"]["fsr_by_format"]) == set(BOTH)
    assert "figures" in failed(edited(made.document, ("verification", "fsr_by_format", "raw"), 0.5))
