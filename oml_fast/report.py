"""A verification as text for people and as JSON for programs. Neither holds a key or a response."""

from __future__ import annotations

import textwrap
from pathlib import Path

from .files import write_json
from .verify import Verification, chance

__all__ = ["text", "write"]

_COLUMNS = 110
_HEADLINES = {
    "match": "match: the suspect model carries these fingerprints.",
    "no_match": "no match: the suspect model does not answer with these fingerprints.",
    "inconclusive": "inconclusive: too little was seen to say either.",
}
_MEANINGS = {
    "match": (
        "The suspect was made with knowledge of these fingerprints: it is the fingerprinted model, or comes from it.\n"
        "This does not say who runs it, whether they had permission, or how they came by it. The error probability\n"
        "holds if keys and secret were fixed before the suspect was made; until a dated commitment shows that, this\n"
        "is the owner's own evidence."
    ),
    "no_match": (
        "The suspect does not answer as a model does that kept a share of {fsr:g} or more of the fingerprints.\n"
        "This does not say that it was never made from the fingerprinted model: training, or a filter on its answers,\n"
        "can remove fingerprints or hide them."
    ),
    "inconclusive": "This accuses nobody and acquits nobody.",
}


def text(verification: Verification) -> str:
    """The verification in a few plain lines, the verdict first."""
    v = verification
    low, high = v.fsr_interval
    formats = ", ".join(f"{name} {fsr:.3g}" for name, fsr in v.fsr_by_format.items())
    by_chance, other = chance(v.log10_p_value), chance(v.other_log10_p_value)
    rows = {
        "Asked": f"{v.queried} of {v.num_fingerprints} keys, of {v.completer}",
        "Answered": f"{v.matches} matches, {v.informative} answers inside their window",
        "FSR": f"{v.fsr:.3g} (95 % interval {low:.4g} to {high:.4g}); by format: {formats}",
        "By chance": f"probability {by_chance} ({v.test} test; {v.other_test} test: {other})",
        "Evidence": f"{v.bits_per_key:.2f} bits per key",
        "Time": f"{v.seconds:.1f} s, {v.fingerprints_per_second:.1f} keys per second",
    }
    lines = [f"Verdict: {_HEADLINES[v.verdict]}", textwrap.fill(v.reason, _COLUMNS), ""]
    lines += [f"{name + ':':<11}{value}" for name, value in rows.items()]
    lines += ["", _MEANINGS[v.verdict].format(fsr=v.smallest_fsr)]
    lines.append("Every key asked is spent: the suspect's host has seen it.")
    return "\n".join(lines) + "\n"


def write(verification: Verification, path: str | Path) -> None:
    """Write the verification as JSON, whole or not at all. Raises OmlError when it cannot."""
    write_json(path, verification.to_json())
