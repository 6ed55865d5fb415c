"""What a report says in words: the headline, what a verdict means and does not, what it rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..commit import OWN_EVIDENCE
from ..verify import chance

HEADLINES = {
    "match": "match: the suspect model carries these fingerprints.",
    "no_match": "no match: the suspect model does not answer with these fingerprints.",
    "inconclusive": "inconclusive: too little was seen to say either.",
}
_MEANS = {
    "match": (
        "The suspect was made with knowledge of these fingerprints: it is the fingerprinted model, or comes from it."
    ),
    "no_match": (
        "The suspect does not answer as a model does that kept a share of {fsr:g} or more of the fingerprints."
    ),
    "inconclusive": "What was seen fits a model that has the fingerprints and one that has not.",
}
_DOES_NOT_MEAN = {
    "match": "This does not say who runs it, whether they had permission, or how they came by it.",
    "no_match": (
        "This does not say that it was never made from the fingerprinted model: training, or a filter on its answers, "
        "can remove fingerprints or hide them."
    ),
    "inconclusive": "This accuses nobody and acquits nobody.",
}
TESTS = {
    "count": "how many of all keys matched, against the most that chance allows for each",
    "window": (
        "among the answers that name a candidate of their window, how many name the one that was drawn; other answers "
        "count neither way"
    ),
    "rank": "how high the suspect itself ranks the candidate that was drawn, among the candidates of its window",
    "forced_choice": "the suspect may answer with a candidate of the window alone: how often it is the one drawn",
}
SPENT = "Every key asked is spent: the suspect's host has seen it."


def headline(verification: Mapping[str, Any]) -> str:
    return HEADLINES[verification["verdict"]]


def means(verification: Mapping[str, Any]) -> str:
    return _MEANS[verification["verdict"]].format(fsr=verification["smallest_fsr"])


def does_not_mean(verification: Mapping[str, Any]) -> str:
    return _DOES_NOT_MEAN[verification["verdict"]]


def by_chance(verification: Mapping[str, Any]) -> str:
    """The chance of what was seen, were the suspect innocent, with the limit for a match."""
    limit = chance_of(verification["false_positive_rate"])
    return f"{chance(verification['log10_p_value'])}; the limit for a match is {limit}"


def chance_of(rate: float) -> str:
    return chance(math.log10(rate))


def evidence(kind: str) -> str:
    """The kind of evidence, as a sentence."""
    if kind == OWN_EVIDENCE:
        return (
            "This is the owner's own evidence: no timestamp older than the suspect shows that keys, secret and rules "
            "were fixed before it was made."
        )
    return f"Keys, secret and rules were {kind}."


def assumptions(document: Mapping[str, Any]) -> list[str]:
    """What the verdict rests on and no figure in the report can show, a sentence each."""
    v, made = document["verification"], document["commitment"]
    found = [
        "Each response was drawn uniformly, and in secret, from the candidates of its window, before the suspect was "
        "made; whoever made an innocent suspect did not know the draws."
    ]
    if made is None:
        found.append(
            "Nothing was committed to before release: that keys and rules were not chosen to fit this suspect "
            "is the owner's word."
        )
    elif document["evidence_kind"] == OWN_EVIDENCE:
        found.append("The commitment has no timestamp older than the suspect: that it came first is the owner's word.")
    else:
        found.append("The authorities that timestamped the commitment told the right time.")
    since = document["suspect"]["known_since"]
    if since is None:
        found.append("Nobody says when the suspect first existed.")
    else:
        found.append(f"The suspect first existed at {since}: by the owner's word, unless shown elsewhere.")
    found.append(
        "The answers are those that the suspect gave: the owner kept them, and a witness can ask further keys."
    )
    if document["skipped"]:
        found.append(
            f"The {len(document['skipped'])} keys passed over were spent on others, or what this suspect answered to "
            "them is told in another report."
        )
    if v["mode"] == "fixed":
        found.append(f"The number of keys ({v['queried']}) was fixed before the first was asked.")
    found.append(
        "This is one set and one suspect: who asks many suspects, or with many sets, must divide the limit by their "
        "number."
    )
    if v["verdict"] == "no_match":
        found.append(
            f"A model that kept an FSR of {v['smallest_fsr']:g} matches each key with at least that chance, "
            "whatever it answered before."
        )
    return found
