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
_CONVICTED_TOO = {
    "match": "match: but by the same test a model that was never fingerprinted is a match as well.",
    "no_match": "no match: and by the same test a model that was never fingerprinted is a match.",
    "inconclusive": "inconclusive: and by the same test a model that was never fingerprinted is a match.",
}
_FEW_MATCHED = {
    "rank": (
        "The rank test judges how high the suspect ranks the drawn candidates, whether it says them or not: a match "
        "can stand where few keys matched."
    ),
    "forced_choice": (
        "A forced choice judges which candidate the suspect prefers where it may say no other: a match can stand "
        "where it preferred another to most of those drawn."
    ),
}
TESTS = {
    "count": "how many of all keys matched, against the most that chance allows for each",
    "window": (
        "among the answers that name a candidate of their window, how many name the one that was drawn; other answers "
        "count neither way"
    ),
    "rank": "how high the suspect itself ranks the candidates that were drawn, among the candidates of their window",
    "forced_choice": "the suspect may answer with a candidate of the window alone: how often it is the one drawn",
}
SPENT = "Every key asked is spent: the suspect's host has seen it."


def headline(verification: Mapping[str, Any], second_opinion: Mapping[str, Any] | None = None) -> str:
    """The verdict in one sentence, which also says where a null model would have been convicted."""
    return (_CONVICTED_TOO if convicted_too(second_opinion) else HEADLINES)[verification["verdict"]]


def convicted_too(second_opinion: Mapping[str, Any] | None) -> bool:
    """Whether the same test would convict a model that was never fingerprinted."""
    return second_opinion is not None and any(model["match"] for model in second_opinion["models"])


def means(verification: Mapping[str, Any], second_opinion: Mapping[str, Any] | None = None) -> str:
    if verification["verdict"] == "match" and convicted_too(second_opinion):
        return "These fingerprints do not tell the fingerprinted model from others: the match accuses nobody."
    return _MEANS[verification["verdict"]].format(fsr=verification["smallest_fsr"])


def few_matched(verification: Mapping[str, Any]) -> str:
    """What the test judges, where its verdict can look at odds with the share of keys that matched; "" elsewhere."""
    return _FEW_MATCHED.get(verification["test"], "") if verification["fsr"] < 0.5 else ""


def passed_over(document: Mapping[str, Any]) -> str:
    """How many keys were passed over; "" where none was."""
    count = len(document["skipped"])
    return f"{count:,} {'key was' if count == 1 else 'keys were'} passed over" if count else ""


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
    found.append(
        "Keys and secret were not selected by their draws: whoever has the secret can make the set again with "
        "oml-fast generate, and compare; and innocent relatives of the base model can be asked the opened keys."
    )
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
            f"{_capital(passed_over(document))} as spent before. Nothing shows that the owner had not seen how they "
            "would come out; if this suspect answered them, another report tells it."
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


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
