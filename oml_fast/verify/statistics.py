"""The exact tests of a verdict: p-values, intervals, and what a verdict costs. Pure functions, in log space.

Everything rests on one fact: inside each window the owner's draw was uniform, secret, and made
before release. For a model made without the secret (H0), and given whatever it answers, the draw is still uniform and
independent from key to key. So no p-value here needs a model of how innocent models answer.

p-values are given as log10, because (1/16)**680 is below the smallest float.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy import special

from ..errors import InvalidArgumentError

TESTS = ("window", "count")
MOST_KEYS = 100_000
_ROUNDING = 1e-9  # of log10 p: what summing 24,576 keys in floats may add, and a p of exactly the limit must convict

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


def keys_to_verdict(
    fsr: float,
    width: int,
    false_positive_rate: float = 1e-6,
    *,
    test: str = "window",
    power: float = 0.99,
    responses: int = 1,
    formats: int = 1,
) -> int | None:
    """The smallest fixed number of keys with which a model of that FSR is convicted with probability >= `power`.

    Exact for the count test. For the window test it assumes that an answer touches a window only where it matches, and
    then in every format, so that m matches give p = null**m: greedy answers lie in the nucleus, and windows outside it;
    a suspect whose wrong answers do touch windows needs more keys. None where MOST_KEYS are not enough. Raises
    InvalidArgumentError.
    """
    _require(0 <= fsr <= 1, f"FSR {fsr}: it must lie in [0, 1].")
    _require(0 < false_positive_rate < 1, f"false-positive rate {false_positive_rate}: it must lie in (0, 1).")
    _require(0 < power < 1, f"power {power}: it must lie in (0, 1).")
    _require(test in TESTS, f"test {test!r}: one of {', '.join(TESTS)}.")
    _require(formats >= 1, f"{formats} formats: at least one.")
    null = null_of_key([null_of_asking(1, width, responses)] * formats)
    queried = 0
    # For each m, the fewest keys that give m matches with the power asked for. That number grows with m, and with fewer
    # keys m matches convict more easily: so the first m whose fewest keys convict gives the smallest number of all.
    for matches in range(1, MOST_KEYS + 1):
        queried = max(queried, matches)
        while queried <= MOST_KEYS and _upper_tail(matches, queried, fsr) < power:
            queried += 1
        if queried > MOST_KEYS:
            return None
        p = null**matches if test == "window" else _upper_tail(matches, queried, null)
        if p <= 0 or convicts(math.log10(p), false_positive_rate):
            return queried
    return None


def _upper_tail(matches: int, queried: int, prob: float) -> float:
    """P(Binomial(queried, prob) >= matches) for 1 <= matches <= queried, where it is not too small for a float."""
    return float(special.betainc(matches, queried - matches + 1, prob))


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
