"""How many keys a verdict takes, before any is spent."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from ..errors import InvalidArgumentError
from .sequential import MISS_WEIGHTS, Floats, log_factors, log_gains, log_miss_factors, log_weights
from .statistics import TESTS, convicts, null_of_asking, null_of_key
from .trials import Ranks

MOST_KEYS = 100_000
_SIMULATED = 2000
_MOST_DRAWS = 5000
_FIXED_TESTS = ("window", "count")


@dataclass(frozen=True, slots=True)
class SequentialCost:
    """Keys that a sequential verdict takes; None where even `most_keys` were not enough in that share of the runs.

    match, no_match: the share of the simulated verifications that ended so.
    """

    median: int | None
    in_99_of_100: int | None
    match: float
    no_match: float


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
    _require(test in _FIXED_TESTS, f"test {test!r}: one of {', '.join(_FIXED_TESTS)}.")
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


def sequential_cost(
    fsr: float,
    width: int,
    false_positive_rate: float = 1e-6,
    *,
    test: str = "window",
    responses: int = 1,
    smallest_fsr: float = 0.5,
    miss_rate: float = 1e-2,
    most_keys: int = 1000,
    seed: int = 0,
) -> SequentialCost:
    """Keys to a verdict of the sequential test on a model with that FSR, simulated. InvalidArgumentError.

    Keys that do not match touch no window in greedy answers; among the candidates they answer as H0 does. A real eroded
    model prefers more responses among its candidates than it says aloud, so that forced_choice and rank cost less. Of
    ranks, a key that matches has all its responses first.
    """
    rates = {
        "FSR": fsr,
        "false-positive rate": false_positive_rate,
        "smallest FSR": smallest_fsr,
        "miss rate": miss_rate,
    }
    for name, rate in rates.items():
        _require(0 < rate < 1 or (name == "FSR" and 0 <= rate <= 1), f"{name} {rate}: it must lie between 0 and 1.")
    _require(test in TESTS, f"test {test!r}: one of {', '.join(TESTS)}.")
    _require(1 <= most_keys <= MOST_KEYS, f"{most_keys} keys at most: between 1 and {MOST_KEYS}.")
    rng = np.random.default_rng(seed)
    null, factors, aloud = _outcomes(test, width, responses, rng)
    cells, miss = len(factors), log_miss_factors(smallest_fsr)
    bets = np.tile(log_weights(test), (_SIMULATED, 1))
    miss_bets = np.tile(np.log(MISS_WEIGHTS), (_SIMULATED, 1))
    highest_miss = np.zeros(_SIMULATED)
    ended = np.zeros(_SIMULATED, dtype=np.int64)
    matched = np.zeros(_SIMULATED, dtype=bool)
    for key in range(1, most_keys + 1):
        said = rng.random(_SIMULATED) < fsr
        if test in ("rank", "forced_choice"):
            outcome = np.where(said | (rng.random(_SIMULATED) < null), 0, rng.integers(1, cells, _SIMULATED))
        else:
            outcome = np.where(said, 0, 1)
        asked = np.where(said[:, None], aloud[outcome], factors[outcome])
        bets += np.where((said | (test != "window"))[:, None], asked, 0.0)
        miss_bets += miss[np.where(said if test != "forced_choice" else outcome == 0, 0, 1)]
        e, highest_miss = _log_sum(bets), np.maximum(highest_miss, _log_sum(miss_bets))
        match = (ended == 0) & (e >= -math.log(false_positive_rate))
        no_match = (ended == 0) & ~match & (highest_miss >= -math.log(miss_rate)) & (e <= 1e-9)
        ended[match | no_match] = key
        matched |= match
        if ended.all():
            break
    keys = np.where(ended == 0, np.iinfo(np.int64).max, ended)
    most = [int(np.sort(keys)[math.ceil(share * _SIMULATED) - 1]) for share in (0.5, 0.99)]
    median, nearly_all = (keys if keys <= most_keys else None for keys in most)
    return SequentialCost(median, nearly_all, float(matched.mean()), float(((ended > 0) & ~matched).mean()))


def _outcomes(test: str, width: int, responses: int, rng: np.random.Generator) -> tuple[float, Floats, Floats]:
    """The chance of the first outcome of a key; ln of the bets' factors, quiet and aloud, of it and of others.

    The others are equally likely. Of ranks of several responses they are all draws, or many, and the first is all
    responses first. Where all candidates are responses every draw is the same, and no outcome tells anything.
    """
    null = null_of_asking(1, width, responses)
    if responses == width:
        nothing = np.zeros((2, len(log_weights(test))))
        return null, nothing, nothing
    if test != "rank" or responses == 1:
        cells = max(2, round(1 / null)) if test == "rank" else 2
        probs = (null, *[(1 - null) / (cells - 1)] * (cells - 1))
        return null, log_factors(test, probs), log_factors(test, probs, True)
    draws = math.comb(width, responses)
    first = tuple(range(responses))
    if draws <= _MOST_DRAWS:
        others = list(itertools.combinations(range(width), responses))[1:]
    else:
        drawn = (rng.choice(width, responses, replace=False) for _ in range(_MOST_DRAWS))
        others = [places for each in drawn if (places := tuple(sorted(each.tolist()))) != first]
    quiet, aloud = (
        np.stack([log_gains(test, Ranks((1,) * width, places, said)) for places in (first, *others)])
        for said in (False, True)
    )
    return 1 / draws, quiet, aloud


def _log_sum(values: Floats) -> Floats:
    return np.asarray(special.logsumexp(values, axis=1), dtype=np.float64)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidArgumentError(message)
