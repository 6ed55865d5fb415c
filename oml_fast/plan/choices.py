"""What may be chosen to make an embedding fit, and what each choice costs in quality."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

# Names of ablations (docs/embedding.md), and the fields of the recipe that they change.
RECIPES: dict[str, dict[str, Any]] = {
    "": {},
    "no-whitening": {"whitening": 0.0},
    "mlp-down": {"write_to": "mlp_down"},
    "mlp-down-plain": {"write_to": "mlp_down", "whitening": 0.0},
    "bfloat16": {"states": "bfloat16", "whitening": 0.0, "scaled": 0.0, "rounded": 0.0, "tuned": 0.0},
}


@dataclass(frozen=True, slots=True)
class Layout:
    """How memory is saved that costs no quality but time (docs/embedding.md)."""

    keep_base: str = "device"
    recompute: bool = False
    offload: bool = False


# The first that fits is taken: the base comes over a bus while nothing else does, recomputing is a third more work.
LAYOUTS = (
    Layout(),
    Layout("host"),
    Layout(recompute=True),
    Layout("host", recompute=True),
    Layout("file", recompute=True),
)
LAST_RESORT = Layout("host", recompute=True, offload=True)  # of several processes only


def quality() -> Mapping[str, Mapping[str, float]]:
    """By ablation of a preset, "harmless/no-whitening": FSR and KL on sampled text of 64 keys in the bundled model.

    bench/ablations.py writes it. An ablation that was not measured is missing.
    """
    text = resources.files(__package__).joinpath("quality.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, float]] = json.loads(text)["variants"]
    return found
