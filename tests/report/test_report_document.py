"""The document: what is in it and what is not, its schema, and files that are not reports."""

from __future__ import annotations

import json
import random
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from reports import SINCE, TESTS, Made, another, edited, make, places, secrets_of
from sets import SECRET, small_set

from oml_fast import report
from oml_fast.commit import OWN_EVIDENCE
from oml_fast.errors import InvalidArgumentError, OmlError
from oml_fast.report import document, load, opening
from oml_fast.report.form import first_fault
from oml_fast.verify import KeyOutcome, Verification
from oml_fast.verify.journal import Journal
from oml_fast.verify.trials import Ranks, Trial

OWN: Any = document


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("document"))


def validator(schema: dict[str, Any]) -> Any:
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("mode", ["sequential", "fixed"])
@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("verdict", ["match", "no_match", "inconclusive"])
def test_documents_and_openings_follow_their_schemas(tmp_path: Path, verdict: str, test: str, mode: str) -> None:
    made = make(tmp_path, verdict=verdict, test=test, mode=mode, count=40, formats=("raw",))
    validator(report.schema()).validate(made.document)
    validator(report.schema()).validate(made.signed)
    validator(opening.schema()).validate(made.opening())


def test_ranks_of_several_responses_follow_the_schema(tmp_path: Path) -> None:
    made = make(tmp_path, test="rank", width=4, responses_per_key=2)
    validator(report.schema()).validate(made.document)
    validator(opening.schema()).validate(made.opening())


def test_the_schema_knows_every_field_of_a_verification() -> None:
    known = report.schema()["$defs"]
    for kind, name in ((Verification, "verification"), (KeyOutcome, "key"), (Trial, "trial"), (Ranks, "ranks")):
        assert set(known[name]["properties"]) == {field.name for field in fields(kind)}
        assert set(known[name]["required"]) == set(known[name]["properties"])


def test_our_validator_agrees_with_the_library(made: Made, tmp_path: Path) -> None:
    draw = random.Random(1)  # noqa: S311 - which edits to try
    ranks = make(tmp_path, test="rank", width=4, responses_per_key=2, num_keys=2, verdict="inconclusive")
    cases = ((report.schema(), made.signed), (report.schema(), ranks.document), (opening.schema(), made.opening()))
    for schema, value in cases:
        library = validator(schema)
        assert first_fault(value, schema) is None
        for place in places(value):
            wrong = draw.choice([None, True, -1, 2.5, 10**12, "", "x", "0" * 64, [], {}, [1], {"a": 1}])
            for new in (wrong, another):
                changed = edited(value, place, new)
                assert (first_fault(changed, schema) is None) == library.is_valid(changed), (place, new)


def test_a_document_holds_no_secret(made: Made) -> None:
    told = json.dumps(made.signed, ensure_ascii=False)
    for text in secrets_of(made.fingerprints):
        assert text not in told
    assert SECRET.hex() not in told
    for each in made.opening()["answers"]:
        assert each["salt"] not in told


def test_digests_differ_from_report_to_report(made: Made) -> None:
    answers = Journal(made.answers)
    answers._answers = dict(report.read_answers(made.document, made.answers))
    again = report.document(made.verification, suspect="s", journal=answers, secret=SECRET)
    first, second = (each["answers"]["digests"] for each in (again, made.document))
    assert not {d for each in first for d in each.values()} & {d for each in second for d in each.values()}


def test_without_commitment_answers_or_dates(made: Made) -> None:
    plain = report.document(made.verification, suspect="s")
    for name in ("commitment", "commitment_digest", "leaves", "answers", "licensee", "set_name", "second_opinion"):
        assert plain[name] is None
    assert plain["evidence_kind"] == OWN_EVIDENCE
    assert plain["suspect"] == {"name": "s", "known_since": None}
    assert any("owner's word" in sentence for sentence in plain["assumptions"])
    assert report.check(plain).ok


def test_a_document_refuses(made: Made) -> None:
    bad: list[tuple[str, dict[str, Any]]] = [
        ("has no zone", {"suspect_known_since": datetime(2026, 1, 1)}),
        ("has no zone", {"created": datetime(2026, 1, 1)}),
        ("needs the order", {"commitment": made.commitment}),
        ("not in the committed order", {"commitment": made.commitment, "order": [1, 2]}),
        ("suspect.name", {"suspect": ""}),
        ("half a character", {"suspect": "\ud800"}),
        ("lacks answers", {"journal": Journal("nowhere"), "secret": SECRET}),
    ]
    for words, options in bad:
        with pytest.raises(InvalidArgumentError, match=words):
            report.document(made.verification, **{"suspect": "s", "suspect_known_since": SINCE, **options})


def test_files(made: Made, tmp_path: Path) -> None:
    report.write(made.signed, tmp_path / "report.json")
    assert load(tmp_path / "report.json") == made.signed
    report.write(made.verification, tmp_path / "verification.json")
    assert json.loads((tmp_path / "verification.json").read_text()) == made.verification.to_json()
    (tmp_path / "file").write_text("")
    with pytest.raises(OmlError, match="cannot write"):
        report.write(made.verification, tmp_path / "file" / "verification.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "cut short or damaged"),
        ("{", "cut short or damaged"),
        ("[]", "it must be object"),
        ("{}", "is no report"),
        ('{"kind": 1}', "is no report"),
        ('{"kind": "oml_fast verification report"}', "has no 'format'"),
        ('{"kind": 1, "kind": 2}', "twice"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ("[" * 100_000, "damaged"),
    ],
)
def test_files_that_are_no_reports(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot read the report"):
        load(tmp_path / "none.json")
    with pytest.raises(InvalidArgumentError, match="cannot read the opening"):
        report.load_opening(tmp_path / "none.json")


def test_a_verification_s_own_json_is_no_report(made: Made, tmp_path: Path) -> None:
    report.write(made.verification, tmp_path / "v.json")
    with pytest.raises(InvalidArgumentError, match="is no report"):
        load(tmp_path / "v.json")


def test_another_set_has_another_digest() -> None:
    assert small_set(3).digest() != small_set(4).digest()
