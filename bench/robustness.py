"""What is left of fingerprints after every attack, published recipe beside ours: docs/robustness.md from one command.

`python bench/robustness.py --work FOLDER` makes the models of bench/subjects.py that are not there, attacks each with
the whole battery (the comparisons of responses and of seeds with the quick one), and writes
bench/results/robustness.json, the tables and the plots in docs. Every finished attack is kept in FOLDER: a killed run
goes on. With NAMEs only those models are attacked, beside the others' kept results; with `--attacks` too, parts are
kept and nothing is written, so that several processes can share the work.
`python bench/robustness.py --publish` writes the documents again from the JSON, and measures nothing.
"""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ROOT, Figure, base_model, commit, data_file, describe_run, finish, parser, start
from figures import rewritten
from subjects import SUBJECTS, Subject, make

from oml_fast.evaluate import plots
from oml_fast.evaluate.attack import Scene
from oml_fast.evaluate.attacks import QUICK, choose
from oml_fast.evaluate.battery import robustness
from oml_fast.evaluate.data import Data
from oml_fast.evaluate.report import Strongest, cells, specificity_text, strongest
from oml_fast.evaluate.specificity import NEAR_BAR
from oml_fast.fingerprint import FingerprintSet
from oml_fast.models import load

SIZES = {
    64: ("ours-64", "published-64"),
    256: ("ours-256", "published-256", "harmless-256", "robust-256"),
}
FULL = tuple(name for names in SIZES.values() for name in names)
PRESETS = ("harmless-256", "robust-256")
ROBUST = "robust-256"
COMPARED = ("ours-64-second", "english-random-64", "random-word-64")
SIBLING = "ours-64-second"  # the other fingerprinted copy in every host's reach; its own is ours-64
PAGE, TABLES, PLOTS = ROOT / "docs/robustness.md", ROOT / "docs/robustness-tables.md", ROOT / "docs/plots"
Report = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Direction:
    """What a paper found, as a bar on the FSR after an attack on the published recipe, for both sizes."""

    what: str
    attack: str
    bar: str
    met: Callable[[Mapping[str, float]], bool]  # FSR by attack, "" being before


def _least(name: str, at_least: float) -> Callable[[Mapping[str, float]], bool]:
    return lambda fsr: fsr[name] >= at_least


def _most(name: str, at_most: float) -> Callable[[Mapping[str, float]], bool]:
    return lambda fsr: fsr[name] <= at_most


def _below(name: str, other: str) -> Callable[[Mapping[str, float]], bool]:
    return lambda fsr: fsr[name] < fsr[other]


DIRECTIONS = (
    Direction(
        "gated suppression takes most [ADV]", "suppress/gated-0.9", "FSR <= 0.35", _most("suppress/gated-0.9", 0.35)
    ),
    Direction("top-1 suppression takes nearly all [ADV]", "suppress/top-1", "FSR <= 0.1", _most("suppress/top-1", 0.1)),
    Direction(
        "a system prompt in plain text costs a large share [SF]",
        "prompts/system-plain",
        "FSR <= 0.8",
        _most("prompts/system-plain", 0.8),
    ),
    Direction(
        "a long system prompt in plain text costs a large share [SF]",
        "prompts/system-long",
        "FSR <= 0.8",
        _most("prompts/system-long", 0.8),
    ),
    Direction(
        "a system prompt in the chat template costs a large share [SF]",
        "prompts/chat-system",
        "FSR <= 0.8",
        _most("prompts/chat-system", 0.8),
    ),
    Direction(
        "merging at 0.5 loses more than at 0.9 [SF]",
        "merge/linear-0.5",
        "below 0.9's",
        _below("merge/linear-0.5", "merge/linear-0.9"),
    ),
    Direction("INT8 changes next to nothing", "rounding/int8", "FSR >= 0.95", _least("rounding/int8", 0.95)),
    Direction(
        "a nucleus projection kills by construction", "projection/base", "FSR <= 0.05", _most("projection/base", 0.05)
    ),
    Direction("MEraser takes most [ME]", "meraser/300-600", "FSR <= 0.5", _most("meraser/300-600", 0.5)),
    Direction(
        "a smaller share of the delta keeps less", "scaling/0.3", "below 0.7's", _below("scaling/0.3", "scaling/0.7")
    ),
    Direction(
        "a distilled student inherits next to nothing",
        "distillation/text",
        "FSR <= 0.1",
        _most("distillation/text", 0.1),
    ),
    Direction(
        "keys cannot be harvested",
        "harvesting/fingerprinted",
        "FSR >= 0.95 of before",
        lambda fsr: fsr["harvesting/fingerprinted"] >= 0.95 * fsr[""],
    ),
)


# What hosts do to a model without meaning any harm to its fingerprints.
BENIGN = ("prompts", "sampling", "rounding", "gguf", "merge", "sft", "lora", "dpo")
MOST_PRUNED = 0.3  # more of the weights ruins the model
# The lowest FSR that the preset robust must keep.
KEPT = {
    "merge/linear-0.7": 0.95,
    "merge/linear-0.5": 0.7,
    "rounding/int4-128": 0.9,
    "prompts/ten-systems": 0.9,
    "sft/2000": 0.9,
    "suppress/top-1": 0.8,
    "suppress/gated-0.9": 0.8,
    "suppress/gated-0.7": 0.8,
    "suppress/gated-0.5": 0.8,
    "suppress/gated-0.3": 0.8,
}
MOST_KL = 0.10
CLEAN_BITS, BENIGN_BITS, SUPPRESSED_BITS = 3.5, 1.0, 0.5


def attack(name: str, work: Path, only: Sequence[str] = ()) -> dict[str, Any]:
    """The report of one model, as far as it is not there yet, and the commits that it was measured at."""
    for needed in (name, SIBLING, "ours-64"):
        make(needed, work / needed)
    folder, sibling = work / name, work / ("ours-64" if name == SIBLING else SIBLING)
    instructions = data_file("sft_instructions.jsonl")
    scene = Scene(
        model=load(folder / "model", device="cpu"),
        base=base_model(),
        fingerprints=FingerprintSet.load(folder / "fingerprints.json"),
        siblings=(load(sibling / "model", device="cpu"),),
        data=Data(None if instructions is None else instructions.parent),
    )
    others = [FingerprintSet.load(sibling / "fingerprints.json")]
    attacks = choose(only or (() if name in FULL else (*QUICK, "scaling")))
    found = robustness(scene, attacks, others=others, folder=folder / "parts", made_by=commit(), progress=True)
    result = found.to_json()
    commits = sorted({part["made_by"] for part in (result["before"], result["specificity"], *result["rows"])})
    made = json.loads((folder / "made.json").read_text())
    return result | {"model": name, "base_model": Path(result["base_model"]).name, "commits": commits, "made": made}


def directions(reports: Mapping[str, Report], how: str) -> list[Figure]:
    """What the papers found, on the published recipe; and for each model how specific its keys are."""
    rows = []
    for name in ("published-64", "published-256"):
        if name not in reports:
            continue
        fsr = {row["attack"]: row["fsr"] for row in reports[name]["rows"] if not row["skipped"]}
        fsr[""] = reports[name]["before"]["fsr"]
        for d in DIRECTIONS:
            with contextlib.suppress(KeyError):  # an attack that was skipped
                value = f"{fsr['']:.3f} -> {fsr[d.attack]:.3f}"
                rows.append(Figure(f"{d.what}: {d.attack}", name, value, d.bar, d.met(fsr), how))
    for name, report in reports.items():
        near = report["specificity"]["one_word"]
        shown = f"{near['fired']} of {near['asked']}, {near['share']:.1%}"
        met = near["share"] <= NEAR_BAR
        rows.append(Figure("near keys, one word changed, that fire", name, shown, f"<= {NEAR_BAR:.0%}", met, how))
    return rows


def robust_bars(reports: Mapping[str, Report], how: str) -> list[Figure]:
    """What the preset robust must hold: evidence by the strongest test that a host's access allows, FSR, and drift."""
    if ROBUST not in reports:
        return []
    before = reports[ROBUST]["before"]
    rows = {row["attack"]: row for row in reports[ROBUST]["rows"] if not row["skipped"]}
    benign = {name: row for name, row in rows.items() if _is_benign(row)}
    suppressed = {name: row for name, row in rows.items() if name.startswith("suppress/")}
    figures = [_bits("bits a spent key, as released", before, CLEAN_BITS, how)]
    for what, found, bar in (
        ("worst benign attack", benign, BENIGN_BITS),
        ("worst suppression", suppressed, SUPPRESSED_BITS),
    ):
        if found:
            name = min(found, key=lambda name: strongest(found[name]).bits)
            figures.append(_bits(f"bits a spent key, {what} of {len(found)}: {name}", found[name], bar, how))
    missed = [name for name, row in rows.items() if strongest(row).verdict != "match"]
    shown = f"{len(rows) - len(missed)} of {len(rows)}" + (f"; not after {', '.join(missed)}" if missed else "")
    figures.append(Figure("match at 1e-6 by the strongest test", ROBUST, shown, "after each attack", not missed, how))
    for name, least in KEPT.items():
        if name in rows:
            fsr = rows[name]["fsr"]
            figures.append(Figure(f"FSR after {name}", ROBUST, f"{fsr:.3f}", f">= {least:g}", fsr >= least, how))
    kl = before["text"]["kl"]
    figures.append(Figure("KL to the base on text", ROBUST, f"{kl:.3f}", f"<= {MOST_KL:g}", kl <= MOST_KL, how))
    return figures


def _is_benign(row: Report) -> bool:
    family = row["attack"].split("/")[0]
    return family in BENIGN or (family == "pruning" and row["strength"] <= MOST_PRUNED)


def _bits(what: str, row: Report, least: float, how: str) -> Figure:
    found = strongest(row)
    return Figure(what, ROBUST, f"{found.bits:.2f} ({_words(found)})", f">= {least:g}", found.bits >= least, how)


def _words(found: Strongest) -> str:
    keys = "" if found.keys is None else f", a match takes {found.keys:,} keys"
    return f"{found.test.replace('_', ' ')} test{keys}"


def publish(reports: Mapping[str, Report]) -> None:
    """Write the tables and the plots of docs."""
    for path, content in documents(reports).items():
        path.write_text(content)
    for size, names in SIZES.items():
        if shown := drawn(names, reports):
            plots.write(shown, PLOTS, f"robustness_{size}_")


def drawn(names: Sequence[str], reports: Mapping[str, Report]) -> dict[str, Report]:
    """The reports that share a plot: the presets, where there are any, take the place of ours-256."""
    replaced = any(name in reports for name in names if name in PRESETS)
    return {n: reports[n] for n in names if n in reports and not (replaced and n == "ours-256")}


def documents(reports: Mapping[str, Report]) -> dict[Path, str]:
    """The pages with the tables of these reports in them."""
    page = rewritten(PAGE.read_text(), summary(reports), PAGE.name, "robustness")
    return {PAGE: rewritten(page, outcomes(reports), PAGE.name, "outcomes"), TABLES: tables(reports)}


def summary(reports: Mapping[str, Report]) -> str:
    """FSR, and bits a key by the window test, a line an attack, a column a model that had the whole battery."""
    full = [name for name in FULL if name in reports]
    rows = [["as released", *(_left(reports[name]["before"]) for name in full)]]
    for attacked in _names(reports[name] for name in full):
        found = ({row["attack"]: row for row in reports[name]["rows"]}.get(attacked) for name in full)
        rows.append([f"`{attacked}`", *("" if row is None or row["skipped"] else _left(row) for row in found)])
    return _table(["attack", *full], rows)


OUTCOMES = {
    "nine fingerprints in ten or more are left": lambda row: row["persistence"] >= 0.9,
    "fewer, and the verdict is still a match": lambda row: row["verdict"] == "match" and row["persistence"] < 0.9,
    "no match any more": lambda row: row["verdict"] != "match" and row["persistence"] < 0.9,
}


def outcomes(reports: Mapping[str, Report]) -> str:
    """How many attacks, and which, leave how much of each model that had the whole battery."""
    parts = []
    for outcome, holds in OUTCOMES.items():
        parts.append(f"**{outcome[0].upper()}{outcome[1:]}**\n")
        for name in (name for name in FULL if name in reports):
            found = [f"`{row['attack']}`" for row in reports[name]["rows"] if not row["skipped"] and holds(row)]
            line = f"- {name}, {len(found)} attacks: {', '.join(found) or 'none'}."
            parts.append(textwrap.fill(line, 118, subsequent_indent="  ", break_on_hyphens=False))
        parts.append("")
    return "\n".join(parts).rstrip()


def tables(reports: Mapping[str, Report]) -> str:
    """The page with everything that was measured on each model."""
    parts = [
        "# Robustness: every figure\n\nWritten by `python bench/robustness.py` from `bench/results/robustness.json`; "
        "what the columns mean stands in\n[robustness.md](robustness.md).\n"
    ]
    for name, report in reports.items():
        specific = textwrap.fill(specificity_text(report["specificity"]), 118)
        table = _table(["attack", *cells(report["before"])], _rows(report))
        parts.append(f"\n## {name}\n\n{_made(report)}\n\n{specific}\n\n{table}\n")
    return "".join(parts)


def _rows(report: Report) -> list[list[str]]:
    before = cells(report["before"])
    lines = [["as released", *before.values()]]
    for row in report["rows"]:
        left = [f"not run: {row['skipped']}", *[""] * (len(before) - 1)] if row["skipped"] else cells(row).values()
        lines.append([f"`{row['attack']}`", *left])
    return lines


def _made(report: Report) -> str:
    made, name = report["made"], report["model"]
    v = SUBJECTS.get(name, Subject(report["num_fingerprints"]))
    how = "the published training" if v.published else "the preset quick"
    if name in PRESETS:
        how = f"the preset {name.split('-')[0]}"
    return textwrap.fill(
        f"{v.num} fingerprints, width {report['width']}, {v.responses} responses, {how}: {made['epochs']} epochs, "
        f"{made['cpu_seconds']:.0f} CPU seconds. Attacked at {', '.join(report['commits'])}.",
        118,
    )


def _left(row: Report) -> str:
    return f"{row['fsr']:.2f} ({row['bits_per_key']['window']:.2f})"


def _names(reports: Any) -> list[str]:
    return list(dict.fromkeys(row["attack"] for report in reports for row in report["rows"]))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *rows])


def main() -> None:
    options = parser(__doc__, "robustness")
    options.add_argument("names", nargs="*", metavar="NAME", help=f"attack only these, of {', '.join(SUBJECTS)}")
    options.add_argument("--work", type=Path, help="folder that keeps the models and every finished attack")
    options.add_argument("--attacks", default="", help="only these, of the models named; for several processes")
    options.add_argument("--publish", action="store_true", help="only write the documents again from the JSON")
    arguments = options.parse_args()
    if arguments.publish:
        publish(json.loads(arguments.out.read_text())["reports"])
        return
    if arguments.work is None:
        options.error("--work FOLDER is needed, or --publish")
    if arguments.attacks and not arguments.names:
        options.error("--attacks goes with NAMEs")
    start(arguments.threads)
    run = describe_run(arguments.threads, base_model())
    only = arguments.attacks.split(",") if arguments.attacks else ()
    everything = [name for name in (*FULL, *COMPARED) if name in SUBJECTS]
    made = {name: attack(name, arguments.work, only) for name in arguments.names or everything}
    if only:
        print("measured and kept; without --attacks the same command writes the tables and plots", file=sys.stderr)
        return
    kept = json.loads(arguments.out.read_text())["reports"] if arguments.out.is_file() else {}
    reports = {name: (kept | made)[name] for name in (*FULL, *COMPARED) if name in kept | made}
    how = "python bench/robustness.py"
    finish(arguments.out, run, directions(reports, how) + robust_bars(reports, how), {"reports": reports})
    publish(reports)


if __name__ == "__main__":
    main()
