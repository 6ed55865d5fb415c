"""The rule that turns evidence into a verdict, and its reason in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InvalidArgumentError
from .statistics import convicts, p_value

VERDICTS = ("match", "no_match", "inconclusive")
FAVOURED = (
    "The base model's own order of the candidates would be a match as well, or nearly: these draws favour what the "
    "base model and its innocent descendants prefer, as draws that were not selected hardly ever do."
)
_MOST_UNANSWERED = 0.1  # above this share of the keys, silence is no evidence that fingerprints are gone


@dataclass(frozen=True, slots=True)
class Limits:
    """What a verdict may cost: P(match | H0), the smallest FSR that still counts as a match, P(no_match | that FSR)."""

    false_positive_rate: float
    smallest_fsr: float
    miss_rate: float

    def __post_init__(self) -> None:
        names = {"false-positive rate": self.false_positive_rate, "smallest FSR": self.smallest_fsr}
        for name, rate in (names | {"miss rate": self.miss_rate}).items():
            if not 0 < rate < 1:
                raise InvalidArgumentError(f"{name} {rate}: it must lie between 0 and 1, both excluded.")


def decide(
    log10_p: float, log10_miss: float, matches: int, queried: int, unanswered: int, limits: Limits
) -> tuple[str, str]:
    """The verdict on a number of keys fixed beforehand, and a sentence that says why.

    `match` if p <= the false-positive rate; else `no_match` if a model with an FSR of `smallest_fsr` would match so few
    keys with a probability of at most the miss rate; else `inconclusive`.
    """
    if convicts(log10_p, limits.false_positive_rate):
        by_chance = f"with a probability of {chance(log10_p)}; the limit is {_limit(limits.false_positive_rate)}."
        return "match", f"A model made without the secret answers {queried} keys like this, or more so, {by_chance}"
    if convicts(log10_miss, limits.miss_rate):
        if silent(unanswered, queried):
            return "inconclusive", _silence(unanswered, queried)
        so_few = f"{matches} or fewer" if matches else "none"
        return "no_match", (
            f"A model that kept an FSR of {limits.smallest_fsr:g} or more matches {so_few} of {queried} keys with a "
            f"probability of {chance(log10_miss)}; the limit is {_limit(limits.miss_rate)}."
        )
    return "inconclusive", (
        f"{matches} of {queried} keys matched: too few to say match (probability by chance {chance(log10_p)}, the "
        f"limit is {_limit(limits.false_positive_rate)}), and that does not exclude an FSR of {limits.smallest_fsr:g}. "
        "Verify in sequential mode: there the error rates hold when you go on."
    )


def decide_sequential(
    verdict: str,
    log10_p: float,
    log10_miss: float,
    matches: int,
    queried: int,
    unanswered: int,
    exhausted: bool,
    limits: Limits,
) -> tuple[str, str]:
    """The sequential test's verdict with a sentence that says why. `exhausted`: the set had no more keys to ask."""
    if verdict == "match":
        return "match", (
            f"The chance that a model made without the secret ever gives such evidence, however long one asks it, is "
            f"at most {chance(log10_p)}; the limit is {_limit(limits.false_positive_rate)}. It was reached after "
            f"{queried} keys."
        )
    if verdict == "no_match" and not silent(unanswered, queried):
        return "no_match", (
            f"{matches} of {queried} keys matched: a model with an FSR of {limits.smallest_fsr:g} or more ever looks "
            f"like this with a probability of at most {chance(log10_miss)}; the limit is {_limit(limits.miss_rate)}."
        )
    if verdict == "no_match":
        return "inconclusive", _silence(unanswered, queried)
    more = "The set has no more keys to ask." if exhausted else "Ask more keys, if any are left: the error rates hold."
    return "inconclusive", (
        f"{matches} of {queried} keys matched: neither enough for a match (probability by chance {chance(log10_p)}, "
        f"the limit is {_limit(limits.false_positive_rate)}), nor few enough to exclude an FSR of "
        f"{limits.smallest_fsr:g}. {more}"
    )


def chance(log10_p: float) -> str:
    """A probability in words: '0.49', 'one in 2,500', 'one in 10^38'. Those below 0.01 are rounded up."""
    digits = -log10_p + 1e-9
    return f"{p_value(log10_p):.2g}" if digits < 2 else f"one in {_odds(log10_p)}"


def _odds(log10_p: float) -> str:
    digits = -log10_p + 1e-9
    return f"{int(10**digits):,}" if digits < 6 else f"10^{int(digits)}"


def _limit(rate: float) -> str:
    return chance(math.log10(rate))


def favours_base(log10_p: float, false_positive_rate: float) -> bool:
    """Whether the base model's own order of the candidates comes too near to a match for a verdict to rest on it.

    Half the way in log p: a suspect that prefers candidates much as the base model does can be a little ahead of it.
    """
    return convicts(log10_p, math.sqrt(false_positive_rate))


def silent(unanswered: int, queried: int) -> bool:
    """Whether so many keys got no answer that a no_match would rest on silence."""
    return unanswered > _MOST_UNANSWERED * queried


def _silence(unanswered: int, queried: int) -> str:
    return (
        f"{unanswered} of {queried} keys got no answer. They count as no match, but silence does not show that the "
        "fingerprints are gone: ask again when the suspect answers."
    )
