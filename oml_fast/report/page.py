"""A report as one HTML page: everything inline, no network, no script. For people who decide, and for print."""

from __future__ import annotations

import calendar
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..commit import OWN_EVIDENCE
from ..errors import InvalidArgumentError
from ..files import PUBLIC_MODE, SECRET_MODE, write_atomic
from ..fingerprint import FingerprintSet
from ..verify import chance
from . import figures, plots, words
from .document import report_digest

if TYPE_CHECKING:
    from markupsafe import Markup

_FOLDED_FROM = 24  # keys; with more, their table is folded


def page(report: Mapping[str, Any], fingerprints: FingerprintSet | None = None) -> str:
    """The HTML page of a report's document. `fingerprints`: also show the text of each key asked and of its responses.

    With them the page is as secret as those keys. Raises InvalidArgumentError where the set is another one.
    """
    import jinja2

    v = report["verification"]
    if fingerprints is not None and fingerprints.digest() != v["set_digest"]:
        raise InvalidArgumentError("this is not the fingerprint set that the report is about: name that one.")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters = {"powers": _powers, "percent": _percent, "day": _day, "times": _times, "capitalize_first": _capital}
    filters |= {"in_words": _in_words, "authority": _authority}
    environment.filters |= filters
    template = environment.from_string(_read("page.html.j2"))
    return template.render(
        report=report,
        v=v,
        verdict=v["verdict"],
        style=_safe(_read("page.css")),
        words=words,
        chance=chance,
        rows=_formats(v),
        path=_safe(plots.path(v)) if v["mode"] == "sequential" else None,
        squares=_safe(plots.keys(v)),
        shown=None if fingerprints is None else _shown(v, fingerprints),
        folded=v["queried"] > _FOLDED_FROM,
        digest=report_digest(report),
        own_evidence=OWN_EVIDENCE,
        strongest=figures.strongest(v),
        by_chance=figures.by_chance,
    )


def write_page(report: Mapping[str, Any], path: str | Path, fingerprints: FingerprintSet | None = None) -> None:
    """Write the page whole or not at all; with fingerprints in it, with mode 0600. Raises OmlError when it cannot."""
    write_atomic(path, page(report, fingerprints), PUBLIC_MODE if fingerprints is None else SECRET_MODE)


def _formats(v: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each format, and one for any of them where there are several."""
    counts = {name: sum(name in key["matched_formats"] for key in v["keys"]) for name in figures.formats(v)}
    if len(counts) > 1:
        counts = {"any of them": v["matches"], **counts}
    rows = []
    for name, matches in counts.items():
        low, high = figures.interval(v, matches)
        seen = matches / v["queried"]
        drawn = _safe(plots.interval(low, seen, high))
        rows.append({"name": name, "matches": matches, "fsr": seen, "low": low, "high": high, "drawn": drawn})
    return rows


def _shown(v: Mapping[str, Any], fingerprints: FingerprintSet) -> dict[int, dict[str, Any]]:
    """Of each key asked its text, and the texts of its responses by format."""
    by_number = {fingerprint.number: fingerprint for fingerprint in fingerprints}
    found = {}
    for key in v["keys"]:
        fingerprint = by_number[key["number"]]
        texts = {name: [r.text for r in asking.responses] for name, asking in fingerprint.askings.items()}
        found[key["number"]] = {"key": fingerprint.key, "responses": texts}
    return found


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _safe(text: str) -> Markup:
    """Markup of our own making: a template or a figure, never anything from a report."""
    from markupsafe import Markup

    return Markup(text)  # noqa: S704


def _powers(text: str) -> Markup:
    """Text with 10^n set as a power."""
    from markupsafe import escape

    return _safe(re.sub(r"10\^(-?\d+(?:\.\d+)?)", r"10<sup>\1</sup>", str(escape(text))))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _in_words(log10_p: float) -> str:
    """A small probability as people say it."""
    for digits, name in ((12, "trillion"), (9, "billion"), (6, "million"), (3, "thousand")):
        if log10_p <= -digits + 1e-9:
            return f"at most one in a {name}"
    return "nothing unusual" if log10_p > -1 else "unusual, but it happens"


def _authority(name: str) -> str:
    """The common name in a certificate's subject, or all of it."""
    found = re.search(r"(?:^|,)CN=([^,]+)", name)
    return found[1] if found else name


def _percent(share: float) -> str:
    return f"{100 * share:.3g}\u00a0%"


def _day(time: str) -> str:
    """2026-11-22T05:00:00Z as "22 November 2026, 05:00 UTC"; what is no such time stays as it is."""
    found = re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)T(\d\d:\d\d).*", time)
    if not found or not 1 <= int(found[2]) <= 12:
        return time
    return f"{int(found[3])} {calendar.month_name[int(found[2])]} {found[1]}, {found[4]} UTC"


def _times(log10: float | None) -> str:
    """The evidence as a factor: 10^3.2, or 0.4."""
    if log10 is None:
        return ""
    return f"{10**log10:.2g}" if abs(log10) < 2 else f"10^{log10:.1f}"
