"""The exact tests of a verdict: p-values and intervals for a number of keys fixed beforehand. Pure, in log space.

Everything rests on one fact: inside each window the owner's draw was uniform, secret, and made
before release. For a model made without the secret (H0), and given whatever it answers, the draw is still uniform and
independent from key to key. So no p-value here needs a model of how innocent models answer.

p-values are given as log10, because (1/16)**680 is below the smallest float.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

from ..errors import InvalidArgumentError

TESTS = ("rank", "forced_choice", "window", "count")  # the strongest first
_ROUNDING = 1e-9  # of log10 p: what summing 24,576 keys in floats may add, and a p of exactly the limit must convict
_LEVELS = 96  # steps of a rank score: the ranks of 16 candidates, and of 3, are whole numbers of them

_Floats = npt.NDArray[np.float64]


def null_of_asking(satisfied: int, width: int, responses: int = 1) -> float:
    """P(a response matches | the answer) in one format, under H0: 1 - C(k - c, r) / C(k, r).

    c `satisfied` candidates of the window's k = `width` would be accepted in the answer; r `responses` were drawn
    without replacement, so all r miss with C(k - c, r) / C(k, r). Exact: the answer fixes c, the draw does not see it.
    """
    _require(1 <= responses <= width, f"{responses} responses of {width} candidates: between 1 and the width.")
    _require(0 <= satisfied <= width, f"{satisfied} candidates satisfied of {width}: between 0 and the width.")
    draws = math.comb(width, responses)
    return (draws - math.comb(width - satisfied, responses)) / draws


def null_of_key(askings: Iterable[float]) -> float:
    """P(any asking matches | the answers) of one key, under H0: 1 - prod(1 - p_f) over its formats.

    Formats of one key are one trial: a key counts once, in however many formats it matched. Exact, because each format
    has its own independent draw (the format's name is in the keyed digest).
    """
    nulls = [null for null in askings if null > 0]
    if len(nulls) < 2:
        return nulls[0] if nulls else 0.0
    if max(nulls) >= 1:
        return 1.0
    return -math.expm1(math.fsum(math.log1p(-null) for null in nulls))


def count_test(matches: int, queried: int, null: float) -> float:
    """log10 of P(Binomial(queried, null) >= matches).

    `null` is the most that one key can match by chance: null_of_key of null_of_asking(1, ...), when a rule accepts
    at most one candidate per answer. Then every key's chance is at most `null`, whatever is answered, and the tail is
    an upper bound. Raises InvalidArgumentError.
    """
    _require_matches(matches, queried)
    _require(0 < null <= 1, f"null {null}: it must lie in (0, 1].")
    return window_test(np.full(queried, null), matches)


def window_test(nulls: npt.ArrayLike, matches: int) -> float:
    """log10 of P(PoissonBinomial(nulls) >= matches); `nulls` (M,) holds null_of_key of each key asked.

    Given the answers, the keys match independently, each with its own null: the tail is exact, not a bound, for every
    match rule. Answers that touch no window have null 0, and cost nothing. Raises InvalidArgumentError, also when
    there are more matches than answers that touched a window: then the match rule contradicts itself.
    """
    values = np.asarray(nulls, dtype=np.float64)
    good = values.ndim == 1 and bool(np.all((values >= 0) & (values <= 1)))
    _require(good, "nulls must be probabilities, one for each key, shape (M,).")
    _require_matches(matches, int(np.count_nonzero(values)))
    certain = int(np.count_nonzero(values == 1))
    probs, counts = np.unique(values[(values > 0) & (values < 1)], return_counts=True)
    return min(0.0, _log_upper_tail(probs, counts, matches - certain) / math.log(10)) + 0.0


def rank_null(sizes: Sequence[int], responses: int = 1) -> tuple[float, ...]:
    """P(the best of r responses lies in each group of equal scores), best group first, under H0.

    `sizes` are the numbers of candidates with equal scores, the highest score first; they sum to the width k. Given
    the suspect's scores, the draw is uniform: P(none of the first n candidates was drawn) = C(k - n, r) / C(k, r). Ties
    need no random number: the group is the outcome, and its chance is exact.
    """
    width = sum(sizes)
    _require(1 <= responses <= width, f"{responses} responses of {width} candidates: between 1 and the width.")
    _require(all(size >= 1 for size in sizes), "every group of equal scores holds a candidate.")
    draws, before, left = math.comb(width, responses), 0, math.comb(width, responses)
    probs = []
    for size in sizes:
        before += size
        still = math.comb(width - before, responses)
        probs.append((left - still) / draws)
        left = still
    return tuple(prob for prob in probs if prob > 0)  # r responses cannot all lie in the last r - 1 places


def rank_test(trials: Iterable[tuple[Sequence[float], int]]) -> float:
    """log10 of P(sum of rank scores <= the sum seen), over (rank_null, place of the response's group) of each trial.

    A group's score is the middle of its share of the null distribution, best first, in steps of 1/96; the tail is exact
    for every score. With all responses first and no ties it is k**-M. Raises InvalidArgumentError.
    """
    kinds: dict[tuple[float, ...], int] = {}
    seen = 0
    for probs, place in trials:
        kind = tuple(probs)
        _require(0 <= place < len(kind), f"outcome {place} of {len(kind)}.")
        _require(abs(math.fsum(kind) - 1) < 1e-9, "the chances of a trial's outcomes must sum to 1.")
        if len(kind) > 1:
            kinds[kind] = kinds.get(kind, 0) + 1
            seen += _LEVELS - _scores(kind)[place]
    masses = [(_masses(kind), count) for kind, count in kinds.items()]
    return min(0.0, log_tail_of_sum(masses, seen) / math.log(10)) + 0.0


def convicts(log10_p: float, false_positive_rate: float) -> bool:
    """Whether p <= the false-positive rate, with an allowance of 1e-9 in log10 for rounding."""
    return log10_p <= math.log10(false_positive_rate) + _ROUNDING


def p_value(log10_p: float) -> float:
    """10**log10_p; 0.0 only where that is below the smallest float."""
    return float(10.0**log10_p)


def bits_per_key(log10_p: float, queried: int) -> float:
    """-log2(p) / queried: how much evidence a key gave, in bits."""
    return -log10_p * math.log2(10) / queried + 0.0


def clopper_pearson(matches: int, queried: int, level: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval for the FSR [Clopper and Pearson 1934]: it covers with at least `level`."""
    _require_matches(matches, queried)
    _require(queried >= 1, f"{queried} keys asked: at least one.")
    _require(0 < level < 1, f"level {level}: it must lie in (0, 1).")
    tail = (1 - level) / 2
    low = 0.0 if matches == 0 else float(special.betaincinv(matches, queried - matches + 1, tail))
    high = 1.0 if matches == queried else float(special.betaincinv(matches + 1, queried - matches, 1 - tail))
    return low, high


def log_tail_of_sum(kinds: Sequence[tuple[_Floats, int]], at_least: int) -> float:
    """ln P(S >= at_least), S the sum of `count` independent draws of each distribution, exactly, by tilting.

    The distributions (L,) are of whole numbers from 0, all of one length; `at_least` is a sum that can be.
    """
    most = sum(int(np.flatnonzero(masses)[-1]) * count for masses, count in kinds)
    assert at_least <= most
    if at_least == most:
        return math.fsum(count * math.log(masses[np.flatnonzero(masses)[-1]]) for masses, count in kinds)
    masses, counts = np.stack([masses for masses, _ in kinds]), np.array([count for _, count in kinds])
    low, high = 0.0, 64.0
    if _tilted_mean(masses, counts, 0.0) >= at_least:
        high = 0.0
    for _ in range(60 if high else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if _tilted_mean(masses, counts, middle) < at_least else (low, middle)
    tilted, log_each = _tilted(masses, high)
    powers = [_power(one, int(count)) for one, count in zip(tilted, counts, strict=True)]
    tail = _convolve(sorted(powers, key=len))[at_least:]
    log_sum = math.log(float(np.sum(tail * np.exp(-high * np.arange(len(tail))))))
    return float(counts @ log_each) - high * at_least + log_sum


def _log_upper_tail(probs: _Floats, counts: npt.NDArray[np.intp], matches: int) -> float:
    """ln P(S >= matches), S the sum over groups g of Binomial(counts[g], probs[g]), with probs in (0, 1).

    By exponential tilting, which is exact: with S' the same sum at odds multiplied by e**t, P(S = s) =
    E[e**(t S)] e**(-t s) P(S' = s). t >= 0 puts the mean of S' at `matches`, so that nothing that counts underflows.
    """
    total = int(counts.sum())
    if matches <= 0:
        return 0.0
    if matches == total:
        return float(np.sum(counts * np.log(probs)))
    tilt = _tilt(special.logit(probs), counts, matches)
    tilted = special.expit(special.logit(probs) + tilt)
    masses = [_binomial_masses(int(n), float(p)) for n, p in zip(counts, tilted, strict=True)]
    tail = _convolve(masses)[matches:]
    log_expectation = float(np.sum(counts * np.logaddexp(np.log1p(-probs), np.log(probs) + tilt)))
    return log_expectation - tilt * matches + math.log(float(np.sum(tail * np.exp(-tilt * np.arange(len(tail))))))


def _tilt(logits: _Floats, counts: npt.NDArray[np.intp], matches: int) -> float:
    """t >= 0 with sum(counts * expit(logits + t)) near `matches` (0 where the mean is above it); by bisection."""
    low, high = 0.0, math.log(int(counts.sum())) + max(0.0, -float(logits.min()))
    if float(counts @ special.expit(logits)) >= matches:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        if float(counts @ special.expit(logits + middle)) < matches:
            low = middle
        else:
            high = middle
    return high


def _binomial_masses(n: int, prob: float) -> _Floats:
    """(n + 1,) P(Binomial(n, prob) = j)."""
    if n == 1:
        return np.array([1 - prob, prob])
    j = np.arange(n + 1, dtype=np.float64)
    ways = special.gammaln(n + 1.0) - special.gammaln(j + 1) - special.gammaln(n - j + 1)
    return np.asarray(np.exp(ways + special.xlogy(j, prob) + special.xlog1py(n - j, -prob)))


def _scores(probs: Sequence[float]) -> list[int]:
    """The middle of each outcome's share of [0, 1], in steps of 1 / _LEVELS."""
    ends = np.cumsum(probs)
    return [int(score) for score in np.rint(_LEVELS * (ends - np.asarray(probs) / 2))]


def _masses(probs: Sequence[float]) -> _Floats:
    """(_LEVELS + 1,) the distribution of _LEVELS - score: what is large is evidence."""
    masses = np.zeros(_LEVELS + 1)
    np.add.at(masses, [_LEVELS - score for score in _scores(probs)], probs)
    return masses


def _tilted(masses: _Floats, tilt: float) -> tuple[_Floats, _Floats]:
    """(K, L) distributions at odds multiplied by e**tilt a step, and the logarithms (K,) of what divided them."""
    with np.errstate(divide="ignore"):
        logs = np.log(masses) + tilt * np.arange(masses.shape[1])
    log_sums = np.asarray(special.logsumexp(logs, axis=1), dtype=np.float64)
    return np.exp(logs - log_sums[:, None]), log_sums


def _tilted_mean(masses: _Floats, counts: npt.NDArray[np.intp], tilt: float) -> float:
    return float(counts @ (_tilted(masses, tilt)[0] @ np.arange(masses.shape[1])))


def _power(masses: _Floats, count: int) -> _Floats:
    """The distribution of the sum of `count` independent draws, by repeated doubling."""
    result = np.ones(1)
    while count:
        if count & 1:
            result = _convolve_two(result, masses)
        count >>= 1
        masses = _convolve_two(masses, masses) if count else masses
    return result


def _convolve(masses: list[_Floats]) -> _Floats:
    """The distribution of the sum of independent variables, neighbours first."""
    while len(masses) > 1:
        pairs = zip(masses[::2], masses[1::2], strict=False)
        left_over = masses[len(masses) // 2 * 2 :]
        masses = [_convolve_two(a, b) for a, b in pairs] + left_over
    return masses[0]


def _convolve_two(a: _Floats, b: _Floats) -> _Floats:
    """Directly where short; else by Fourier transform, whose error of 1e-16 is small beside the tilted tail (1e-3)."""
    if min(len(a), len(b)) <= 512:
        return np.convolve(a, b).astype(np.float64, copy=False)
    size = len(a) + len(b) - 1
    length = 1 << (size - 1).bit_length()
    product = np.fft.irfft(np.fft.rfft(a, length) * np.fft.rfft(b, length), length)[:size]
    return np.asarray(np.maximum(product, 0.0), dtype=np.float64)


def _require_matches(matches: int, most: int) -> None:
    _require(0 <= matches <= most, f"{matches} matches of {most} keys that could match: between 0 and all of them.")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidArgumentError(message)
