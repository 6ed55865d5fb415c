"""A report against its commitment: terms, order of asking, timestamps; what is not as committed is refused."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from reports import BOTH, Made, another, edited, failed, found, make
from sets import SECRET, Scripted, carrier

from oml_fast import report
from oml_fast.commit import Commitment, TimeStamp, asking_order, check_timestamps, read_roots, timestamp_request
from oml_fast.verify import verify
from oml_fast.verify.calibration import calibrate


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("committed"))


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
    ok, sentence = found("order", told)
    assert ok is None
    assert "2 keys were passed over as spent before (places 0, 1): nothing shows" in sentence
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


def test_words_are_those_of_the_format_whatever_version_it_names(made: Made) -> None:
    other = edited(made.document, ("verification", "oml_fast_version"), "9.9.9")
    assert found("words", other)[0] is True
    for place, words in (
        (("assumptions",), ["None."]),
        (("headline",), "guilty"),
        (("verification", "reason"), "So it is."),
    ):
        assert failed(edited(other, place, words)) == ["words"]
        assert place[-1] in found("words", edited(other, place, words))[1]


def test_a_second_opinion_is_computed_anew(made: Made) -> None:
    opinion = calibrate(made.fingerprints, made.verification, [Scripted()])
    document = report.document(made.verification, suspect="s", second_opinion=opinion)
    assert report.check(document).ok
    for name in ("null_rate", "log10_p_value"):
        assert failed(edited(document, ("second_opinion", name), another)) == ["figures"]
    for name in ("matches", "match"):
        assert "figures" in failed(edited(document, ("second_opinion", "models", 0, name), another)), name
    assert "figures" in failed(edited(document, ("second_opinion", "models", 0, "log10_p_value"), -9.0))


def test_formats_of_one_key_are_kept_apart(made: Made) -> None:
    assert set(made.document["verification"]["fsr_by_format"]) == set(BOTH)
    assert "figures" in failed(edited(made.document, ("verification", "fsr_by_format", "raw"), 0.5))
