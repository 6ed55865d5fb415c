"""A robustness report as a table for people."""

from __future__ import annotations

import textwrap
from typing import Any

from .battery import Robustness

LEGEND = (
    "FSR: share of the keys asked that are answered with their response; left: FSR over FSR before.",
    "bits a key: evidence by the window test; by count: by the count test. A match at 1e-6 takes 20 bits in all.",
    "answers F1: of words, against references, of ordinary questions that the same host answers; their perplexity:",
    "under the base model. KL to the base model, on text that it wrote, and BLiMP are given where the weights changed.",
)
COLUMNS = ("attack", "FSR", "left", "bits a key", "by count", "answers F1", "their perplexity", "KL", "BLiMP")


def text(result: Robustness) -> str:
    """The table: what is left of the fingerprints after each attack, and what the attack cost the attacker."""
    measured = [("as released", result.before)]
    measured += [(row["attack"], row) for row in result.rows if not row["skipped"]]
    lines = [(name, *(cells(row)[column] for column in COLUMNS[1:])) for name, row in measured]
    widths = [max(len(line[column]) for line in [COLUMNS, *lines]) for column in range(len(COLUMNS))]
    out = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [COLUMNS, *lines]]
    out += [f"not run: {row['attack']}: {row['skipped']}" for row in result.rows if row["skipped"]]
    out += [
        "",
        *LEGEND,
        "",
        f"Ordinary questions: {result.questions}.",
        textwrap.fill(specificity_text(result.specificity), 110),
    ]
    return "\n".join(line.rstrip() for line in out) + "\n"


def specificity_text(found: dict[str, Any]) -> str:
    """Where the model fires though it should not, in two sentences."""

    def share(part: dict[str, Any]) -> str:
        return f"{part['fired']} of {part['asked']} ({part['share']:.1%})"

    others = "; ".join(
        f"{share(other['answered'])} keys of another owner's set, verdict {other['verdict']}"
        for other in found["others"]
    )
    bar = "" if found["holds"] else " (bar of 1 % not met)"
    return (
        f"Specificity{bar}: it fires on {share(found['one_word'])} near keys with one word changed, "
        f"{share(found['two_words'])} with two, {share(found['dropped_word'])} with one dropped"
        + (f"; on {others}" if others else "")
        + f"; and on {share(found['unrelated'])} ordinary prompts."
    )


def cells(row: dict[str, Any]) -> dict[str, str]:
    """Every column of a row, by name; empty where the attack has no such figure."""
    bits, text, answers = row["bits_per_key"], row.get("text"), row["answers"]
    blimp, perplexity = row.get("blimp"), answers["perplexity"]
    return {
        "FSR": f"{row['fsr']:.3f}",
        "left": f"{row.get('persistence', 1.0):.0%}",
        "bits a key": f"{bits['window']:.2f}",
        "by count": f"{bits['count']:.2f}",
        "verdict": row["verdict"],
        "answers F1": f"{answers['f1']:.3f} ± {answers['f1_standard_error']:.3f}",
        "changed": f"{answers['changed']:.0%}",
        "refused": f"{answers['refused']:.0%}",
        "their perplexity": "" if perplexity is None else f"{perplexity:.2f}",
        "text perplexity": f"{text['perplexity']:.2f}" if text else "",
        "KL": f"{text['kl']:.3f}" if text else "",
        "BLiMP": "" if blimp is None else f"{blimp:.1%}",
    }
