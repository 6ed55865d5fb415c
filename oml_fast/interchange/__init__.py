"""Fingerprint sets in the formats of other tools: read, with what is lost said, and written [SF, OML 1.0, MLprints]."""

from __future__ import annotations

from .exporting import Exported, export_published
from .importing import Imported, import_published, lost
from .published import Entry, Published, read_published

__all__ = [
    "Entry",
    "Exported",
    "Imported",
    "Published",
    "export_published",
    "import_published",
    "lost",
    "read_published",
]
