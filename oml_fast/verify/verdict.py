"""The rule that turns a p-value into a verdict, and its reason in words."""

from __future__ import annotations

import math

from .statistics import convicts, count_test, p_value

VERDICTS = ("match", "no_match", "inconclusive")


def decide(
    log10_p: float, matches: int, queried: int, *, false_positive_rate: float, smallest_fsr: float, miss_rate: float
) -> tuple[str, str]:
    """The verdict and a sentence that says why.

    `match` if p <= false_positive_rate; else `no_match` if a model that kept an FSR of `smallest_fsr` would match so
    few keys with probability <= miss_rate; else `inconclusive`. All arguments were validated by `verify`.
    """
    limit = chance(math.log10(false_positive_rate))
    if convicts(log10_p, false_positive_rate):
        by_chance = f"with a probability of {chance(log10_p)}; the limit is {limit}."
        return "match", f"A model made without the secret matches {matches} or more of {queried} keys {by_chance}"
    # P(Binomial(M, f) <= m) is the upper tail of the misses.
    log10_miss = count_test(queried - matches, queried, 1 - smallest_fsr)
    if convicts(log10_miss, miss_rate):
        so_few = f"{matches} or fewer" if matches else "none"
        return "no_match", (
            f"A model that kept an FSR of {smallest_fsr:g} or more matches {so_few} of {queried} keys with a "
            f"probability of {chance(log10_miss)}; the limit is {chance(math.log10(miss_rate))}."
        )
    return "inconclusive", (
        f"{matches} of {queried} keys matched: too few to say match (probability by chance {chance(log10_p)}, "
        f"the limit is {limit}), and that does not exclude an FSR of {smallest_fsr:g}. Ask more keys."
    )


def chance(log10_p: float) -> str:
    """A probability in words: '0.49', 'one in 2,500', 'one in 10^38'. Those below 0.01 are rounded up."""
    digits = -log10_p + 1e-9
    if digits < 2:
        return f"{p_value(log10_p):.2g}"
    return f"one in {int(10**digits):,}" if digits < 6 else f"one in 10^{int(digits)}"
