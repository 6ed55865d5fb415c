"""Text and page of a report: verdict first, in words; no secret in them; nothing loaded from anywhere."""

from __future__ import annotations

import re
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from reports import CREATED, TESTS, Made, edited, make, secrets_of
from sets import carrier, inside, small_set

from oml_fast import report
from oml_fast.errors import InvalidArgumentError, OmlError
from oml_fast.report.page import page, write_page
from oml_fast.verify import verify

VERDICTS = {
    "match": "The suspect model carries these fingerprints.",
    "no_match": "The suspect model does not answer with these fingerprints.",
    "inconclusive": "Too little was seen to say either.",
}
VOID = {"meta", "br", "path", "circle", "use", "rect"}


class Structure(HTMLParser):
    """Open elements, headings, and whatever would load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.links: list[tuple[str, str]] = []
        self.labels = self.figures = self.headers = 0
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(tag)
        self.links += [(name, value or "") for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        self.ids += [values["id"] or ""] if "id" in values else []
        if tag == "svg":
            self.figures += 1
            self.labels += "aria-label" in values or values.get("aria-hidden") == "true"
        self.headers += tag == "th" and "scope" not in values

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("page"))


@pytest.mark.parametrize("mode", ["sequential", "fixed"])
@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("verdict", VERDICTS)
def test_text_and_page_say_the_verdict_and_no_secret(tmp_path: Path, verdict: str, test: str, mode: str) -> None:
    made = make(tmp_path, verdict=verdict, test=test, mode=mode, count=40)
    text, html = report.text(made.document), page(made.document)
    assert text.startswith(f"Verdict: {verdict.replace('_', ' ')}: ")
    assert text.endswith("\n")
    assert max(map(len, text.splitlines())) <= 110
    assert html.index(VERDICTS[verdict]) < html.index("What this means") < html.index("What it rests on")
    for secret in secrets_of(made.fingerprints):
        assert secret not in text
        assert secret not in html
    assert ("How the evidence grew" in html) is (mode == "sequential")


def test_the_page_is_one_file_that_loads_nothing_and_runs_nothing(made: Made) -> None:
    html = page(made.signed)
    found = Structure()
    found.feed(html)
    assert found.open == []
    assert found.headings[0] == "h1"
    assert set(found.headings) == {"h1", "h2", "h3"}
    assert found.labels == found.figures > 3
    assert found.headers == 0
    assert len(found.ids) == len(set(found.ids))
    assert all(value.startswith("#") for _, value in found.links)
    for word in ("<script", "@import", "http:", "https:", "javascript", "onload"):
        assert word not in html.replace("http://www.w3.org/", "")
    assert not re.search(r"url\((?!#)", html)
    assert '<html lang="en">' in html
    assert "@page { size: A4" in html
    assert "default-src 'none'" in html


def test_equal_reports_give_equal_pages(made: Made) -> None:
    assert page(made.document) == page(made.document)


def test_names_from_outside_are_text(made: Made) -> None:
    bad = '<script>alert("1")</script> & <b>'
    document = edited(edited(made.document, ("suspect", "name"), bad), ("verification", "completer"), bad)
    document = edited(document, ("licensee",), "\x1b[31mred\nVerdict: match")
    html = page(document)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    text = report.text(document)
    assert "\x1b" not in text
    assert "Licensee:   [31mred Verdict: match\n" in text


def test_what_the_page_tells(made: Made) -> None:
    html = page(made.signed)
    for words in (
        "Helios, as served",
        "Aurora",
        "Northwind",
        "22 November 2026, 09:30 UTC",
        "at most one in a million",
        "This does not say who runs it",
        "owner&#39;s own evidence",
        "Every key asked is spent",
        made.commitment.digest(),
        made.verification.set_digest,
        report.report_digest(made.document),
        made.signed["signature"]["verification_key"],
        "one in 10<sup>6</sup>",
    ):
        assert words in html, words


def test_a_report_of_a_thousand_keys_is_small_and_folded() -> None:
    fingerprints = small_set(1024, key_length=2)
    found = verify(fingerprints, inside(fingerprints, [i % 17 - 1 for i in range(1024)]), mode="fixed")
    document = report.document(found, suspect="s", created=CREATED)
    html = page(document)
    assert len(html) < 200_000
    assert html.count("<details>") == 1
    assert "Table of all 1,024 keys" in html
    assert html.count('<tr><td class="n">') == 1024


def test_a_sequential_path_of_many_keys_has_no_marks() -> None:
    fingerprints = small_set(300, key_length=2)
    found = verify(fingerprints, inside(fingerprints, [-1] * 300), smallest_fsr=0.01)
    document = report.document(found, suspect="s", created=CREATED)
    assert found.queried > 200
    assert len(page(document)) < 100_000
    assert "<details>" in page(document)


def test_keys_are_shown_when_asked_for_and_only_those_asked(made: Made, tmp_path: Path) -> None:
    html = page(made.document, made.fingerprints)
    asked = {key.number for key in made.verification.keys}
    assert "<strong>Secret.</strong>" in html
    for fingerprint in made.fingerprints:
        shown = [r.text.strip() in html for asking in fingerprint.askings.values() for r in asking.responses]
        assert shown == [fingerprint.number in asked] * len(shown)
    write_page(made.document, tmp_path / "secret.html", made.fingerprints)
    write_page(made.document, tmp_path / "page.html")
    assert stat.S_IMODE((tmp_path / "secret.html").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "page.html").stat().st_mode) == 0o644
    assert (tmp_path / "page.html").read_text() == page(made.document)


def test_another_set_shows_no_keys(made: Made) -> None:
    with pytest.raises(InvalidArgumentError, match="not the fingerprint set"):
        page(made.document, small_set(5))


def test_a_page_that_cannot_be_written(made: Made, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OmlError, match="cannot write"):
        write_page(made.document, tmp_path / "file" / "page.html")


def test_a_verification_alone_has_a_text_too(made: Made) -> None:
    text = " ".join(report.text(made.verification).split())
    for words in (
        "Verdict: match",
        f"Asked: {made.verification.queried} of 24 keys, of scripted",
        "spent",
        "one in 10^6",
    ):
        assert words in text
    assert "owner's own evidence" in text
    assert "strongest after key" in text


def test_no_match_is_no_acquittal_and_inconclusive_accuses_nobody(tmp_path: Path) -> None:
    no_match = " ".join(report.text(make(tmp_path / "1", verdict="no_match").verification).split())
    assert "does not say that it was never made from" in no_match
    assert "0.5" in no_match
    assert "accuses nobody" in report.text(make(tmp_path / "2", verdict="inconclusive").verification)


def test_unanswered_and_skipped_keys_are_told() -> None:
    fingerprints = small_set(24)
    prompts = [fingerprint.askings["raw"].prompt_ids for fingerprint in list(fingerprints)[:2]]
    found = verify(fingerprints, carrier(fingerprints, unanswered=prompts), mode="fixed")
    document = report.document(found, suspect="s", skipped=[90, 91], created=CREATED)
    assert "2 got no answer, and count as no match" in " ".join(report.text(document).split())
    html: Any = page(document)
    assert "2 unanswered" in html
    assert html.count("<td>no answer</td>") == 2
