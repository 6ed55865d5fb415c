"""A verdict computed anew from what a report says of each key: for those who check a report and trust nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InvalidArgumentError
from . import statistics
from .ranks import ranks_test, require_ranks
from .sequential import SequentialTest, confidence_interval
from .trials import Ranks, Trial
from .verdict import FAVOURED, Limits, decide, decide_sequential, favours_base


def replay(verification: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a verification that follow from its keys' outcomes, computed anew. InvalidArgumentError.

    `verification` is Verification.to_json(), or what was read from a report. The answer holds the same names, so that a
    reader compares them one by one: verdict, p-values, counts, FSR, interval, and `log10_e` after each key.
    """
    try:
        limits = Limits(*(float(verification[name]) for name in ("false_positive_rate", "smallest_fsr", "miss_rate")))
        keys = list(verification["keys"])
        trials = [trials_of(verification, key["trials"]) for key in keys]
        matched = [bool(key["matched"]) for key in keys]
        unanswered = sum(not key["answered"] for key in keys)
        test, mode = str(verification["test"]), str(verification["mode"])
        base = [trials_of(verification, key["base"]) for key in keys]
        exhausted = len(keys) == int(verification["num_fingerprints"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgumentError(f"the report's verification is damaged or incomplete: {error!r}.") from error
    if not keys or test not in statistics.TESTS or mode not in ("sequential", "fixed"):
        raise InvalidArgumentError("the report's verification is damaged: no key, or an unknown test or mode.")
    queried, matches = len(keys), sum(matched)
    path: list[float | None] = [None] * queried
    if mode == "fixed":
        log10_p = fixed_log10_p(test, trials)
        log10_miss = statistics.count_test(queried - matches, queried, 1 - limits.smallest_fsr)
        verdict, reason = decide(log10_p, log10_miss, matches, queried, unanswered, limits)
        interval = statistics.clopper_pearson(matches, queried)
    else:
        s = SequentialTest(test, limits.false_positive_rate, limits.smallest_fsr, limits.miss_rate)
        for place, (of_key, match) in enumerate(zip(trials, matched, strict=True)):
            s.add(of_key, match)
            path[place] = s.log10_e
        log10_p, log10_miss = s.log10_p, s.log10_miss
        verdict, reason = decide_sequential(
            s.verdict(), log10_p, log10_miss, matches, queried, unanswered, exhausted, limits
        )
        interval = confidence_interval(matches, queried)
    base_log10_p = evidence(test, mode, limits, base) if any(base) else None
    if verdict == "match" and base_log10_p is not None and favours_base(base_log10_p, limits.false_positive_rate):
        verdict, reason = "inconclusive", FAVOURED
    return {
        "verdict": verdict,
        "reason": reason,
        "p_value": statistics.p_value(log10_p),
        "log10_p_value": log10_p,
        "log10_miss": log10_miss,
        "base_log10_p": base_log10_p,
        "queried": queried,
        "matches": matches,
        "informative": sum(any(trial.informative for trial in of_key) for of_key in trials),
        "unanswered": unanswered,
        "fsr": matches / queried,
        "fsr_interval": interval,
        "bits_per_key": statistics.bits_per_key(log10_p, queried),
        "log10_e": path,
    }


def evidence(test: str, mode: str, limits: Limits, trials: Sequence[Sequence[Trial | Ranks]]) -> float:
    """log10 of the p-value of these keys' trials by themselves: exact, or anytime-valid."""
    if mode == "fixed":
        return fixed_log10_p(test, trials)
    s = SequentialTest(test, limits.false_positive_rate, limits.smallest_fsr, limits.miss_rate)
    for of_key in trials:
        s.add(of_key, False)
    return s.log10_p


def fixed_log10_p(test: str, trials: Sequence[Sequence[Trial | Ranks]]) -> float:
    """log10 of the p-value of these keys' trials, for a number of keys fixed beforehand: exact, or ranks_test's."""
    telling = [trial for of_key in trials for trial in of_key if trial.informative]
    if not telling:
        return 0.0
    several = [trial for trial in telling if isinstance(trial, Ranks)]
    if several:
        return ranks_test((trial.sizes, trial.places) for trial in several)
    single = [trial for trial in telling if isinstance(trial, Trial)]
    if test == "rank":
        return statistics.rank_test((trial.probs, trial.outcome) for trial in single)
    matches = sum(trial.outcome == 0 for trial in single)
    return statistics.window_test([trial.probs[0] for trial in single], matches)


def trials_of(verification: Mapping[str, Any], values: Sequence[Mapping[str, Any]]) -> list[Trial | Ranks]:
    """A key's trials as a report of the verification holds them. Raises KeyError, TypeError or ValueError."""
    width, responses = int(verification["width"]), int(verification["responses_per_key"])
    if verification["test"] == "rank" and responses > 1:
        return [_ranks(value, width, responses) for value in values]
    return [_trial(value) for value in values]


def _ranks(value: Mapping[str, Any], width: int, responses: int) -> Ranks:
    sizes, places = tuple(map(int, value["sizes"])), tuple(map(int, value["places"]))
    require_ranks(sizes, places)
    if (sum(sizes), len(places)) != (width, responses):
        raise ValueError(f"{len(places)} responses of {sum(sizes)} candidates")
    return Ranks(sizes, places, _flag(value["aloud"]))


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"aloud {value!r}")
    return value


def _trial(value: Mapping[str, Any]) -> Trial:
    probs = tuple(float(prob) for prob in value["probs"])
    outcome = int(value["outcome"])
    if not (probs and all(0 < prob <= 1 for prob in probs) and abs(sum(probs) - 1) < 1e-9):
        raise ValueError(f"chances {probs} of a trial")
    if not 0 <= outcome < len(probs):
        raise ValueError(f"outcome {outcome} of {len(probs)}")
    return Trial(probs, outcome, _flag(value["aloud"]))
