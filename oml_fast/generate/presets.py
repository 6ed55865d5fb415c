"""The settings that have a name: for a set that is embedded with the preset of that name."""

from __future__ import annotations

from ..fingerprint import Settings

PRESETS = {
    "harmless": Settings(),
    # Where a host suppresses the first response, the next one comes.
    "robust": Settings(responses_per_key=4),
    "quick": Settings(),
    # The published windows and keys [SF 3.1, its code].
    "paper": Settings(width=3, key_temperature=0.5),
}
