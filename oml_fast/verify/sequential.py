"""The anytime-valid sequential test: ask key after key, stop when the evidence is enough, and the error rates hold.

Bet against H0 on each key before its outcome is known: with outcomes of chance p_1, ..., p_n under H0 and a bet q_1,
..., q_n that sums to 1, the stake is multiplied by q_i / p_i. Under H0 the expected factor is 1 (for the count test,
whose p is an upper bound, at most 1), so the product E is a test martingale and P(E ever reaches 1 / alpha) <= alpha,
whenever one stops [Ville 1939; Waudby-Smith and Ramdas 2024]. E is the mean over several bets, which is again a test
martingale: no bet has to know how much of the fingerprints is left. The p-value is min(1, 1 / the largest E so far).

`no_match` bets in the same way against "each key matches with a chance of at least `smallest_fsr`".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from .trials import Ranks, Trial

Floats = npt.NDArray[np.float64]

# The bet u on the most telling outcome puts q = p + (1 - p) u there and shares the rest as H0 does. Most of the stake
# is on a model that kept nearly everything, so that its verdict needs few keys; the rest covers eroded models.
SPIKES = np.array([0.98, 0.9, 0.75, 0.5, 0.25, 0.1, 0.03])
SPIKE_WEIGHTS = np.array([0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
# For ranks, a third of the stake is bet like that on every key; a third only on keys whose answer was a candidate, said
# aloud, as the window test does; and a third with density falling as exp(-theta u) over the null distribution. Of each
# third one half bets on the best response alone, the other on all responses of a key, one after the other, best first,
# each at its odds given those before it. So E is never less than half of what the best responses give.
TILTS = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
# Against an FSR of f or more: bets that the FSR is f times these.
MISS_BETS = np.array([0.04, 0.3, 0.6])
MISS_WEIGHTS = np.array([0.5, 0.25, 0.25])
_LOOK_AHEAD = 4096


def log_weights(test: str) -> Floats:
    """(J,) ln of the stake on each bet."""
    if test != "rank":
        return np.asarray(np.log(SPIKE_WEIGHTS), dtype=np.float64)
    thirds = np.concatenate([SPIKE_WEIGHTS, SPIKE_WEIGHTS, np.full(len(TILTS), 1 / len(TILTS))])
    return np.asarray(np.log(np.tile(thirds, 2) / 6), dtype=np.float64)


@lru_cache(maxsize=65536)
def log_factors(test: str, probs: tuple[float, ...], aloud: bool = False, further: bool = False) -> Floats:
    """(outcomes, J) ln q / p of each bet, for each outcome of a trial with these chances under H0.

    further: a step of a key's ranks after the best response's, on which half of the bets stake nothing.
    """
    p = np.asarray(probs)
    spikes: Floats = np.log1p(-SPIKES)[None, :].repeat(len(p), axis=0)
    spikes[0] = np.log(p[0] + (1 - p[0]) * SPIKES) - math.log(p[0])
    if test != "rank":
        return spikes
    ends = np.cumsum(p)
    ends[-1] = 1.0
    reached = np.expm1(-TILTS * ends[:, None]) / np.expm1(-TILTS)
    bets = np.diff(reached, axis=0, prepend=0.0)
    half = np.concatenate([spikes, spikes if aloud else 0 * spikes, np.log(bets / p[:, None])], axis=1)
    return np.concatenate([0 * half if further else half, half], axis=1)


@lru_cache(maxsize=65536)
def log_gains(test: str, trial: Trial | Ranks) -> Floats:
    """(J,) ln of what the outcome seen multiplies each bet by; 0 where there could be no other."""
    gains: Floats = np.zeros(len(log_weights(test)))
    for place, (probs, outcome) in enumerate(trial.steps):
        if len(probs) > 1:
            gains = gains + log_factors(test, probs, trial.aloud, place > 0)[outcome]
    return gains


def most_log_gains(test: str, best: Trial | Ranks) -> Floats:
    """(J,) more than which no trial gains; `best`: all responses first, no ties, the answer a candidate.

    Ties share the chance of all r responses first, 1 / C(k, r), among the steps in other ways. A spike's gain, ln(1 - u
    + u x) for odds x, is convex in ln x: it is greatest where one step has all of the chance. A tilt's is concave, and
    greatest without ties.
    """
    gains = log_gains(test, best)
    if len(best.steps) == 1:
        return gains
    chance = math.prod(probs[outcome] for probs, outcome in best.steps)
    whole = log_factors(test, (chance, 1 - chance), best.aloud, True)[0]
    return np.asarray(np.maximum(gains, whole), dtype=np.float64)


def log_miss_factors(smallest_fsr: float) -> Floats:
    """(2, 3) ln of the factors against an FSR of `smallest_fsr` or more: of a key that matched, and of another."""
    bets = smallest_fsr * MISS_BETS
    return np.stack([np.log(MISS_BETS), np.log1p(-bets) - math.log1p(-smallest_fsr)])


class SequentialTest:
    """The evidence so far. All logarithms that it gives are log10."""

    def __init__(self, test: str, false_positive_rate: float, smallest_fsr: float, miss_rate: float) -> None:
        self._test = test
        self._limit, self._miss_limit = -math.log(false_positive_rate), -math.log(miss_rate)
        self._bets, self._miss_bets = log_weights(test), np.log(MISS_WEIGHTS)
        self._miss_factors = log_miss_factors(smallest_fsr)
        self._highest = 0.0
        self._highest_miss = 0.0

    def add(self, trials: Sequence[Trial | Ranks], matched: bool) -> None:
        """One more key: its trials, and whether it matched."""
        for trial in trials:
            self._bets = self._bets + log_gains(self._test, trial)
        self._miss_bets = self._miss_bets + self._miss_factors[0 if matched else 1]
        self._highest = max(self._highest, self._log_e)
        self._highest_miss = max(self._highest_miss, _log_sum(self._miss_bets))

    @property
    def _log_e(self) -> float:
        return _log_sum(self._bets)

    @property
    def log10_e(self) -> float:
        """log10 E, the evidence for the owner after the keys so far."""
        return self._log_e / math.log(10)

    @property
    def log10_p(self) -> float:
        """log10 of the anytime-valid p-value, min(1, 1 / the largest E so far)."""
        return -self._highest / math.log(10) if self._highest > 1e-12 else 0.0

    @property
    def log10_miss(self) -> float:
        """log10 of the anytime-valid p-value of "an FSR of `smallest_fsr` or more"."""
        return -self._highest_miss / math.log(10) if self._highest_miss > 1e-12 else 0.0

    def verdict(self) -> str:
        """match once E has reached 1 / alpha; no_match once the FSR is excluded and E is at most 1; else inconclusive.

        The second condition is only patience: an eroded model may exclude the smallest FSR while evidence for the owner
        grows. Stopping later leaves both error rates as they are.
        """
        if self._highest >= self._limit * (1 - 1e-12):
            return "match"
        if self._highest_miss >= self._miss_limit * (1 - 1e-12) and self._log_e <= 1e-9:
            return "no_match"
        return "inconclusive"

    def fewest_more(self, best: Sequence[Trial | Ranks]) -> int:
        """The least number of further keys that could end it: all as telling as `best`, or none a match."""
        if self._highest_miss >= self._miss_limit * (1 - 1e-12):
            return 1  # excluded already: the next key may take E to 1
        matching = sum((most_log_gains(self._test, trial) for trial in best), np.zeros(len(self._bets)))
        missing = self._miss_factors[1]
        return min(_steps_to(self._bets, matching, self._limit), _steps_to(self._miss_bets, missing, self._miss_limit))


def _log_sum(logs: Floats) -> float:
    """ln of the sum of e**logs; scipy's, made for arrays of any shape, takes twenty times as long for a few numbers."""
    highest = float(logs.max())
    return highest + math.log(float(np.exp(logs - highest).sum()))


def _steps_to(bets: Floats, factors: Floats, limit: float) -> int:
    """The fewest steps, each adding `factors` to the logarithms `bets`, that bring ln of their sum to `limit`.

    No factor is below 0. _LOOK_AHEAD or more where so many are not enough.
    """

    def reached(steps: int) -> bool:
        return _log_sum(bets + steps * factors) >= limit * (1 - 1e-12)

    low, high = 0, 1
    while high < _LOOK_AHEAD and not reached(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def confidence_interval(matches: int, queried: int, level: float = 0.95) -> tuple[float, float]:
    """The FSRs that a confidence sequence has not excluded: it covers with `level` at all times together.

    All f for which the martingale with a Beta(1/2, 1/2) mixture of bets, B(m + 1/2, n - m + 1/2) / (B(1/2, 1/2) f^m
    (1 - f)^(n - m)), stays below 1 / (1 - level) [Robbins 1970]. For keys that match independently.
    """
    mixture = special.betaln(matches + 0.5, queried - matches + 0.5) - special.betaln(0.5, 0.5)
    limit = -math.log1p(-level)

    def excess(f: float) -> float:
        return float(mixture - special.xlogy(matches, f) - special.xlog1py(queried - matches, -f) - limit)

    seen, tiny = matches / queried, 1e-15
    low = 0.0 if matches == 0 else float(optimize.brentq(excess, tiny, min(seen, 1 - tiny), xtol=1e-12))
    high = 1.0 if matches == queried else float(optimize.brentq(excess, max(seen, tiny), 1 - tiny, xtol=1e-12))
    return low, high
