"""A report in a few plain lines, the verdict first. No key and no response is in it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from ..commit import OWN_EVIDENCE
from ..verify import Verification, chance
from . import words
from .figures import formats, strongest

_COLUMNS = 110


def text(report: Verification | Mapping[str, Any]) -> str:
    """A verification, or a report's document, in plain lines of at most 110 columns."""
    document = None if isinstance(report, Verification) else report
    v = report.to_json() if isinstance(report, Verification) else report["verification"]
    opinion = None if document is None else document["second_opinion"]
    lines = []
    for sentence in (f"Verdict: {words.headline(v, opinion)}", v["reason"], words.few_matched(v)):
        lines += textwrap.wrap(sentence, _COLUMNS)
    lines.append("")
    for name, value in _rows(v, document).items():
        lines += textwrap.wrap(value, _COLUMNS, initial_indent=f"{name + ':':<12}", subsequent_indent=" " * 12)
    kind = OWN_EVIDENCE if document is None else document["evidence_kind"]
    meaning = f"{words.means(v, opinion)} {words.does_not_mean(v)}"
    if v["verdict"] == "match":
        meaning += (
            " The error probability holds if keys and secret came before the suspect, and were not selected by their "
            f"draws. {words.evidence(kind)}"
        )
    lines += ["", *textwrap.wrap(meaning, _COLUMNS), words.SPENT]
    return "\n".join(lines) + "\n"


def _rows(v: Mapping[str, Any], document: Mapping[str, Any] | None) -> dict[str, str]:
    low, high = v["fsr_interval"]
    by_format = ", ".join(f"{name} {v['fsr_by_format'][name]:.3g}" for name in formats(v))
    hidden = {v["test"]} | ({"forced_choice"} if document is not None else set())  # which only an opening shows
    others = "; ".join(f"{name} {chance(p)}" for name, p in v["fixed_log10_p"].items() if name not in hidden)
    rows = {
        "Asked": f"{v['queried']} of {v['num_fingerprints']} keys, of {v['completer']}",
        "Identity": v["identity"] or "the suspect tells none",
        "Matched": f"{v['matches']} keys ({v['match_rule']}); {v['informative']} answers that could tell",
        "FSR": f"{v['fsr']:.3g} (95 % interval {low:.4g} to {high:.4g}); by format: {by_format}",
        "By chance": f"probability {words.by_chance(v)}",
        "Test": f"{v['test']}, {v['mode']}: {v['test_reason']}",
        "Evidence": _evidence(v),
        "Time": f"{v['seconds']:.1f} s, {v['fingerprints_per_second']:.1f} keys per second",
    }
    if v["unanswered"]:
        rows["Matched"] += f"; {v['unanswered']} got no answer, and count as no match"
    if others:
        rows["Compare"] = f"by other tests, were the number of keys fixed: {others}"
    if document is not None:
        about = {"Suspect": document["suspect"]["name"], "Licensee": document["licensee"], "Set": document["set_name"]}
        rows = {name: _line(value) for name, value in about.items() if value} | rows
        rows["Asked"] += f"; {passed}" if (passed := words.passed_over(document)) else ""
        rows["Committed"] = _committed(document)
    return {name: _line(value) for name, value in rows.items()}


def _evidence(v: Mapping[str, Any]) -> str:
    bits = f"{v['bits_per_key']:.2f} bits per key"
    reached = strongest(v)
    return bits if reached is None else f"{bits}; strongest after key {reached}"


def _committed(document: Mapping[str, Any]) -> str:
    if document["commitment"] is None:
        return "nothing before release"
    digest, stamps = document["commitment_digest"], document["timestamps"]
    told = "; ".join(f"timestamped by {stamp['authority']} at {stamp['time']}" for stamp in stamps)
    return f"{digest}; {told or 'no timestamp'}"


def _line(text: str) -> str:
    """One line of what can be printed: names come from outside, and a terminal obeys control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
