"""Write the tables of measured figures in README.md and docs/measurements.md from bench/results/*.json.

Nothing in them is written by hand. `--check` writes nothing and exits with 1 where they are out of date.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"
ORDER = (
    *("perinucleus", "perinucleus_threads", "linear_cross_entropy", "fingerprint_loss", "anchored_adamw"),
    *("perinucleus_cuda", "linear_cross_entropy_cuda", "fingerprint_loss_cuda", "anchored_adamw_cuda", "embed_gpu"),
    *("generate", "generate_scale", "embed", "embed_step", "plan"),
    *("drift_raw", "drift_raw_chat", "capacity", "ablations"),
    *("verify", "endpoint"),
    *("keys_to_verdict", "error_rates"),
    *("utility", "robustness", "permission", "mutants", "startup"),
)
# What README.md shows of each result: figures, or their settings, with one of these in them.
HEADLINES = {
    "perinucleus": ("published loop",),
    "perinucleus_cuda": ("of a copy's", "batched sort"),
    "linear_cross_entropy": ("times faster",),
    "fingerprint_loss": ("extra memory",),
    "anchored_adamw": ("MLP 1536 x 576, gradient bfloat16",),
    "embed_gpu": ("embed on a GPU",),
    "generate": ("times fewer",),
    "generate_scale": ("peak memory", "round-trip"),
    "embed": ("times fewer",),
    "plan": ("of tensors; bundled, quick", "a step; bundled, quick"),
    "verify": ("by vLLM",),
    "keys_to_verdict": ("FSR 1.000, rank test", "rank at 1e-06", "FSR 0.000, rank test"),
    "error_rates": ("rank test, stopping at will", "no_match, stopping at will"),
    "robustness": tuple(
        f"{what}; robust-256"
        for what in (
            *("near keys, one word changed, that fire", "bits a spent key, as released"),
            *("prompts/suffix", "top-3", "match at 1e-6 by the strongest test", "linear-0.7", "linear-0.5"),
            *("int4-128", "ten-systems", "sft/2000", "gated-0.9", "KL to the base on text"),
        )
    ),
    "capacity": (
        *(f"{what}; harmless-256" for what in ("FSR", "WikiText-2", "blimp, acc: most points lost, at 95 %")),
        *("that fire; harmless-256", "FSR; harmless-1024", "WikiText-2; harmless-1024"),
    ),
    "permission": ("permission check", "request, median; session; SQLite", "throughput of"),
    "mutants": ("killed",),
    "startup": ("import",),
}
# Measured where a GPU can be had, so they may be missing.
ON_A_GPU = ("perinucleus_cuda", "embed_gpu")
EMPTY_PAGE = f"""# Measurements

Every figure with the machine, the versions and the command that made it. `python bench/figures.py` writes this page
from `bench/results/`; ratios compare two sides measured in turn within one run.

{BEGIN}
{END}
"""
COLUMNS = ("figure", "setting", "value", "bar", "command", "commit")


def results() -> dict[str, dict[str, Any]]:
    """Result files by name, in the order of the main line, others last."""
    names = sorted(path.stem for path in RESULTS.glob("*.json"))
    ordered = [name for name in ORDER if name in names] + [name for name in names if name not in ORDER]
    return {name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in ordered}


def row(figure: dict[str, Any], run: dict[str, Any]) -> tuple[str, ...]:
    bar = figure["bar"] + (" (not met)" if figure["met"] is False else "")
    return figure["figure"], figure["setting"], figure["value"], bar, f"`{figure['command']}`", run["commit"]


def table(rows: Sequence[Sequence[str]], columns: Sequence[str] = COLUMNS) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def short_table(found: dict[str, dict[str, Any]]) -> str:
    """The figures that have a bar and say most; the page of measurements has all of them."""
    shown = [
        row(figure, {"commit": ""})[:4]
        for name, parts in HEADLINES.items()
        if name in found or name not in ON_A_GPU
        for figure in found[name]["figures"]
        if figure["met"] is not None and any(part in f"{figure['figure']}; {figure['setting']}" for part in parts)
    ]
    return table(shown, COLUMNS[:4])


def erosion_table(result: dict[str, Any]) -> str:
    """Keys to a match by each test, as less and less of what training changed is left."""
    tests = list(result["eroded"][0]["tests"])
    rows = []
    for case in result["eroded"]:
        found = [case["tests"][test]["median_keys"].get("match") for test in tests]
        keys = ["none in 256" if count is None else f"{count:g}" for count in found]
        rows.append([f"{case['share']:g}", f"{case['fsr']:.3f}", *keys])
    return table(rows, ("share of the delta left", "FSR", *(test.replace("_", " ") for test in tests)))


def full_tables(found: dict[str, dict[str, Any]]) -> str:
    """Every figure, under the conditions of its run."""
    sections = []
    for name, result in found.items():
        rows = [row(figure, result["run"]) for figure in result["figures"]]
        sections.append(f"## {name}\n\n{conditions(result['run'])}\n\n{table(rows)}")
    return "\n\n".join(sections)


def conditions(run: dict[str, Any]) -> str:
    """One sentence on where and on what a run was made."""
    on_gpu = run.get("device", "cpu") != "cpu"
    parts = [
        f"{run['device']}, driver {run['driver']}, CUDA {run['cuda']}" if on_gpu else "",
        f"{run['cpu']}, {run['cores']} cores, {run['threads']} thread{'s' if run['threads'] > 1 else ''}",
        f"instructions {run['isa']}" if run.get("isa") else "no native ops",
        f"{run['model']} in {run['dtype']}" if run.get("model") else "",
        f"torch {run['torch']}" + (f", transformers {run['transformers']}" if run.get("transformers") else ""),
        f"load average {run['load_average'][0]:.2f} at the start",
        run.get("date", ""),
    ]
    return textwrap.fill("; ".join(part for part in parts if part) + ".", 118)


def rewritten(text: str, table: str, name: str, what: str = "figures") -> str:
    """`text` with `table` between the markers of `what`."""
    opening, closing = f"<!-- {what}:begin -->", f"<!-- {what}:end -->"
    before, begin, rest = text.partition(opening)
    _, end, after = rest.partition(closing)
    if not begin or not end:
        raise SystemExit(f"{name} has no {opening} and {closing}: put them where the table belongs.")
    return f"{before}{opening}\n{table}\n{closing}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a table is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="where README.md and docs/ lie (default: the checkout)")
    arguments = parser.parse_args()
    found = results()
    stale = []
    pages = (
        ("README.md", short_table(found), "figures"),
        ("docs/measurements.md", full_tables(found), "figures"),
        ("docs/verification.md", erosion_table(found["keys_to_verdict"]), "erosion"),
    )
    for name, wanted, what in pages:
        path = arguments.root / name
        text = path.read_text(encoding="utf-8") if path.is_file() else EMPTY_PAGE
        new = rewritten(text, wanted, name, what)
        if path.is_file() and new == text:
            continue
        stale.append(name)
        if not arguments.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(new, encoding="utf-8")
    if stale:
        told = "out of date; run python bench/figures.py" if arguments.check else "written"
        print(f"{', '.join(stale)}: {told}", file=sys.stderr)
    return int(arguments.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
