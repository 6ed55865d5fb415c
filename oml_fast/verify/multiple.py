"""Many sets against one suspect, or many suspects against one set: the chance of any false accusation stays bounded."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .statistics import convicts


def holm(log10_p: Sequence[float]) -> list[float]:
    """log10 of Holm's adjusted p-values, in the order given [Holm 1979].

    Reject those at most alpha: the chance of one false rejection or more is at most alpha, however the tests depend on
    each other. The p-values of sequential tests are anytime-valid, so they may stand here.
    """
    order = sorted(range(len(log10_p)), key=lambda i: log10_p[i])
    adjusted, highest = [0.0] * len(log10_p), -math.inf
    for place, i in enumerate(order):
        highest = max(highest, log10_p[i] + math.log10(len(log10_p) - place))
        adjusted[i] = min(0.0, highest)
    return adjusted


def e_bh(log10_e: Sequence[float], rate: float) -> list[bool]:
    """Which hypotheses e-BH rejects [Wang and Ramdas 2022]: at most a share `rate` of them is false on average.

    With K e-values (E at the time of stopping, never 1 / p), reject the largest k of them, k the greatest number whose
    k-th largest is at least K / (rate k).
    Holds for e-values that depend on each other in any way.
    """
    order = sorted(range(len(log10_e)), key=lambda i: -log10_e[i])
    rejected = 0
    for place, i in enumerate(order, start=1):
        if convicts(-log10_e[i], rate * place / len(log10_e)):
            rejected = place
    return [i in set(order[:rejected]) for i in range(len(log10_e))]
