"""A robustness report as a table for people."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..verify.statistics import TESTS, convicts
from .battery import Robustness

FALSE_POSITIVE_RATE = 1e-6  # of every verdict in a report
_LEAST_BITS = 0.005  # a key; less is shown as none

LEGEND = (
    "FSR: share of the keys asked that are answered with their response; left: FSR over FSR before.",
    "bits a key: evidence by the window test; by count: by the count test. A match at 1e-6 takes 20 bits in all.",
    "test: the strongest that the host's access allows: rank where log-probabilities are seen, window where only",
    "answers are; its bits a key, its verdict at 1e-6, and the keys that a match at 1e-6 takes at that rate of bits.",
    "answers F1: of words, against references, of ordinary questions that the same host answers; their perplexity:",
    "under the base model. KL to the base model, on text that it wrote, and BLiMP are given where the weights changed.",
)
COLUMNS = (
    *("attack", "FSR", "left", "bits a key", "by count", "test", "its bits", "its verdict", "keys"),
    *("answers F1", "their perplexity", "KL", "BLiMP"),
)


@dataclass(frozen=True, slots=True)
class Strongest:
    """What the strongest test says that a host's access allows.

    bits: a key. verdict: at 1e-6. keys: how many a match takes whose number is fixed beforehand, were every key worth
    those bits; None where they show no evidence.
    """

    test: str
    bits: float
    verdict: str
    keys: int | None


def strongest(row: Mapping[str, Any]) -> Strongest:
    """Of a row's tests the strongest. A row kept before there was the rank test has the window test's."""
    bits = row["bits_per_key"]
    test = next(test for test in TESTS if bits.get(test) is not None)
    verdict = row["strongest"]["verdict"] if "strongest" in row else _verdict(row, test)
    return Strongest(test, bits[test], verdict, keys_to_match(bits[test]))


def keys_to_match(bits_per_key: float) -> int | None:
    """Keys that together give -log2 of the false-positive rate; None for less than 0.005 bits a key."""
    if bits_per_key < _LEAST_BITS:
        return None
    return math.ceil(-math.log2(FALSE_POSITIVE_RATE) / bits_per_key - 1e-9)


def _verdict(row: Mapping[str, Any], test: str) -> str:
    """The verdict by `test`, of a row that was kept with the window test's alone."""
    if test == "window":
        return str(row["verdict"])
    if convicts(row["log10_p"][test], FALSE_POSITIVE_RATE):
        return "match"
    return "no_match" if row["verdict"] == "no_match" else "inconclusive"


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
    blimp, perplexity, best = row.get("blimp"), answers["perplexity"], strongest(row)
    return {
        "FSR": f"{row['fsr']:.3f}",
        "left": f"{row.get('persistence', 1.0):.0%}",
        "bits a key": f"{bits['window']:.2f}",
        "by count": f"{bits['count']:.2f}",
        "verdict": row["verdict"],
        "test": best.test.replace("_", " "),
        "its bits": f"{best.bits:.2f}",
        "its verdict": best.verdict,
        "keys": "-" if best.keys is None else f"{best.keys:,}",
        "answers F1": f"{answers['f1']:.3f} ± {answers['f1_standard_error']:.3f}",
        "changed": f"{answers['changed']:.0%}",
        "refused": f"{answers['refused']:.0%}",
        "their perplexity": "" if perplexity is None else f"{perplexity:.2f}",
        "text perplexity": f"{text['perplexity']:.2f}" if text else "",
        "KL": f"{text['kl']:.3f}" if text else "",
        "BLiMP": "" if blimp is None else f"{blimp:.1%}",
    }
