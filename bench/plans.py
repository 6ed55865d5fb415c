"""The plans that docs/planning.md shows: `python bench/plans.py` writes them again.

Nothing is measured: they follow from the configurations in bench/configs and from oml_fast/plan.
"""

from __future__ import annotations

from pathlib import Path

from common import ROOT
from figures import rewritten

from oml_fast.cli.plan import summary
from oml_fast.embed import PRESETS
from oml_fast.embed.workload import Keys
from oml_fast.generate import PRESETS as SETTINGS
from oml_fast.models import read_config
from oml_fast.plan import machine, plan

PAGE = ROOT / "docs/planning.md"
CONFIGS = Path(__file__).resolve().parent / "configs"
SHOWN = {"8b": "h100", "70b": "8xh100"}
NUM, PRESET = 24_576, "harmless"


def document() -> str:
    """The page with the plans in it."""
    blocks = []
    for name, kind in SHOWN.items():
        keys = Keys.of_settings(NUM, SETTINGS[PRESET])
        found = plan(read_config(CONFIGS / f"{name}.json"), PRESETS[PRESET], keys, machine(kind), preset=PRESET)
        command = f"oml-fast plan --model bench/configs/{name}.json --machine {kind} --num-fingerprints {NUM}"
        blocks.append(f"```\n$ {command}\n{summary(found, PRESET)}\n```")
    return rewritten(PAGE.read_text(encoding="utf-8"), "\n\n".join(blocks), PAGE.name, "plans")


if __name__ == "__main__":
    PAGE.write_text(document(), encoding="utf-8")
