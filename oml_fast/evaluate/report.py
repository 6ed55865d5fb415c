"""A robustness report as a table for people."""

from __future__ import annotations

from typing import Any

from .battery import Robustness

LEGEND = (
    "FSR: share of the keys asked that are answered with their response; left: FSR over FSR before.",
    "bits a key: evidence by the window test; by count: by the count test. A match at 1e-6 takes 20 bits in all.",
    "answers F1: of words, against references, of ordinary questions answered by the same host.",
    "perplexity, KL to the base model: on text that the base model wrote; given where the weights changed.",
)
COLUMNS = ("attack", "FSR", "left", "bits a key", "by count", "answers F1", "perplexity", "KL", "BLiMP")


def text(result: Robustness) -> str:
    """The table: what is left of the fingerprints after each attack, and what the attack cost the attacker."""
    lines = [("as released", *_cells(result.before, 1.0))]
    lines += [(row["attack"], *_cells(row, row.get("persistence"))) for row in result.rows if not row["skipped"]]
    widths = [max(len(line[column]) for line in [COLUMNS, *lines]) for column in range(len(COLUMNS))]
    out = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [COLUMNS, *lines]]
    out += [f"not run: {row['attack']}: {row['skipped']}" for row in result.rows if row["skipped"]]
    out += ["", *LEGEND, "", f"Ordinary questions: {result.questions}.", specificity_text(result.specificity)]
    return "\n".join(line.rstrip() for line in out) + "\n"


def specificity_text(found: dict[str, Any]) -> str:
    """Where the model fires though it should not, in two sentences."""

    def share(part: dict[str, Any]) -> str:
        return f"{part['fired']} of {part['asked']} ({part['share']:.1%})"

    others = "; ".join(
        f"{share(other['answered'])} keys of another owner's set, verdict {other['verdict']}"
        for other in found["others"]
    )
    return (
        f"Specificity: it fires on {share(found['one_word'])} near keys with one word changed, "
        f"{share(found['two_words'])} with two, {share(found['dropped_word'])} with one dropped"
        + (f"; on {others}" if others else "")
        + f"; and on {share(found['unrelated'])} ordinary prompts."
    )


def _cells(row: dict[str, Any], persistence: float | None) -> tuple[str, ...]:
    bits, text, answers = row["bits_per_key"], row.get("text"), row["answers"]
    return (
        f"{row['fsr']:.3f}",
        "" if persistence is None else f"{persistence:.0%}",
        f"{bits['window']:.2f}",
        f"{bits['count']:.2f}",
        f"{answers['f1']:.3f}",
        f"{text['perplexity']:.2f}" if text else "",
        f"{text['kl']:.3f}" if text else "",
        f"{row['blimp']:.1%}" if row.get("blimp") is not None else "",
    )
