"""Reports: a verification as text, JSON and HTML, signed, opened, and checked by those who trust nobody."""

from .checking import Finding, Findings, check
from .document import document, load, report_digest, schema, write
from .opening import load_opening, open_report, read_answers, write_opening
from .page import page, write_page
from .text import text

__all__ = [
    "Finding",
    "Findings",
    "check",
    "document",
    "load",
    "load_opening",
    "open_report",
    "page",
    "read_answers",
    "report_digest",
    "schema",
    "text",
    "write",
    "write_opening",
    "write_page",
]
