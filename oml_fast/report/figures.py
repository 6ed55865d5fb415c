"""The figures of a report computed anew: from the keys' outcomes, and the outcomes from opened keys and answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from ..commit import Commitment
from ..errors import InvalidArgumentError
from ..fingerprint import FORMATS, Fingerprint
from ..verify.matching import match_rule
from ..verify.ranks import chance_of_ranks
from ..verify.replay import fixed_log10_p, replay, trials_of
from ..verify.sequential import SequentialTest, confidence_interval
from ..verify.statistics import clopper_pearson, convicts, count_test, null_of_asking, null_of_key, rank_null
from ..verify.trials import Answers, Ranks, Trial, match_trial, preferred, read

_ROUNDING = 1e-9  # what another machine's arithmetic may change


def differing(verification: Mapping[str, Any]) -> list[str]:
    """The names of what does not follow from the keys' outcomes; empty where all does. Raises InvalidArgumentError."""
    v, keys = verification, verification["keys"]
    asked = formats(v)
    numbers = [key["number"] for key in keys]
    if len(set(numbers)) < len(numbers) or max(numbers) >= 2**32 or len(keys) > v["num_fingerprints"]:
        raise InvalidArgumentError("a key is counted twice, or more keys were asked than there are.")
    computed = replay(v)
    path, p_value = computed.pop("log10_e"), computed.pop("p_value")
    del computed["reason"]  # words are checked with the words
    computed["fsr_by_format"] = {
        name: sum(name in key["matched_formats"] for key in keys) / len(keys) for name in asked
    }
    computed["fingerprints_per_second"] = len(keys) / max(v["seconds"], 1e-9)
    differ = [name for name, value in computed.items() if not same(v[name], value)]
    if not math.isclose(v["p_value"], p_value, rel_tol=1e-6):  # as small as it likes to be
        differ.append("p_value")
    if v["test"] not in v["fixed_log10_p"]:
        differ.append("fixed_log10_p")
    for key, evidence in zip(keys, path, strict=True):
        if not same(key["log10_e"], evidence):
            differ.append(f"log10_e of key {key['number']}")
        if not _follows(v, key, asked):
            differ.append(f"outcome of key {key['number']}")
    return differ or _fixed_differ(v, asked)


def opinion_differs(report: Mapping[str, Any]) -> bool:
    """Whether the figures of a second opinion are not what its null models' matches and p-values give."""
    told, v = report["second_opinion"], report["verification"]
    if told is None:
        return False
    matches, queried = (sum(model[name] for model in told["models"]) for name in ("matches", "queried"))
    if any(not 0 <= model["matches"] <= model["queried"] == v["queried"] for model in told["models"]):
        return True
    if any(model["match"] != convicts(model["log10_p_value"], v["false_positive_rate"]) for model in told["models"]):
        return True
    null_rate = clopper_pearson(matches, queried)[1]
    log10_p = count_test(v["matches"], v["queried"], null_rate)
    return not (same(told["null_rate"], null_rate) and same(told["log10_p_value"], log10_p))


def reread(
    verification: Mapping[str, Any],
    commitment: Commitment,
    fingerprints: Sequence[Fingerprint],
    answers: Sequence[Answers],
) -> list[str]:
    """The names of what the keys' outcomes and p-values are not, read anew from fingerprints and answers.

    Raises InvalidArgumentError and CompleterError where the answers cannot be read so.
    """
    v, rule, settings = verification, match_rule(commitment.terms.match_rule), commitment.settings()
    differ = []
    for test, told in v["fixed_log10_p"].items():
        asked = [
            (fingerprint, {name: of_key.get(name) for name in settings.formats})
            for fingerprint, of_key in zip(fingerprints, answers, strict=True)
        ]
        if test == "forced_choice" and v["test"] == "rank":  # for comparison: what the scores would have chosen
            asked = [(f, {name: preferred(f.askings[name], a) for name, a in of_key.items()}) for f, of_key in asked]
        readings = [read(test, rule, settings, fingerprint, of_key) for fingerprint, of_key in asked]
        if not same(told, fixed_log10_p(test, [reading.trials for reading in readings])):
            differ.append(f"fixed_log10_p.{test}")
        if test != v["test"]:
            continue
        for key, reading in zip(v["keys"], readings, strict=True):
            outcome = {
                "matched": bool(reading.matched_formats),
                "matched_formats": list(reading.matched_formats),
                "satisfied": reading.satisfied,
                "answered": reading.answered,
                "trials": [asdict(trial) for trial in reading.trials],
            }
            differ += [f"{name} of key {key['number']}" for name in outcome if not same(key[name], outcome[name])]
    return differ


def strongest(verification: Mapping[str, Any]) -> int | None:
    """After how many keys the evidence was highest; None where it hardly rose, or the number of keys was fixed."""
    if verification["mode"] == "fixed":
        return None
    path = [key["log10_e"] for key in verification["keys"]]
    return path.index(max(path)) + 1 if max(path) > 0.01 else None


def formats(verification: Mapping[str, Any]) -> list[str]:
    """The formats asked, in their usual order; JSON has them in any."""
    return [name for name in FORMATS if name in verification["fsr_by_format"]]


def paths(verification: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """log10 of the evidence after each key: against chance, and against an FSR of `smallest_fsr` or more."""
    v = verification
    test = SequentialTest(v["test"], v["false_positive_rate"], v["smallest_fsr"], v["miss_rate"])
    chance, miss = [], []
    for key in v["keys"]:
        test.add(trials_of(v, key["trials"]), key["matched"])
        chance.append(test.log10_e)
        miss.append(-test.log10_miss)
    return chance, miss


def by_chance(verification: Mapping[str, Any], key: Mapping[str, Any]) -> list[float]:
    """Of each trial of a key that tells something: the chance under H0 of a match, or of ranks so high."""
    found = []
    for trial in trials_of(verification, key["trials"]):
        if not trial.informative:
            continue
        if isinstance(trial, Ranks):
            found.append(chance_of_ranks(trial.sizes, trial.places))
        else:
            found.append(sum(trial.probs[: trial.outcome + 1]) if verification["test"] == "rank" else trial.probs[0])
    return found


def interval(verification: Mapping[str, Any], matches: int) -> tuple[float, float]:
    """The interval for an FSR with so many matches, of the kind that the verification's mode allows."""
    of = clopper_pearson if verification["mode"] == "fixed" else confidence_interval
    return of(matches, verification["queried"])


def same(told: Any, computed: Any) -> bool:
    """Equal, but for the last digits of numbers."""
    if isinstance(told, Mapping) and isinstance(computed, Mapping):
        return told.keys() == computed.keys() and all(same(told[name], computed[name]) for name in told)
    if isinstance(told, list | tuple) and isinstance(computed, list | tuple):
        return len(told) == len(computed) and all(map(same, told, computed))
    if isinstance(told, float) or isinstance(computed, float):
        numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (told, computed))
        return numbers and math.isclose(told, computed, rel_tol=_ROUNDING, abs_tol=_ROUNDING)
    return type(told) is type(computed) and bool(told == computed)


def _follows(v: Mapping[str, Any], key: Mapping[str, Any], asked: Sequence[str]) -> bool:
    """Whether a key's fields agree with one another: its trial with the candidates touched, its match with both."""
    satisfied, matched = key["satisfied"], key["matched_formats"]
    known = set(satisfied) == set(asked) and len(set(matched)) == len(matched) and set(matched) <= set(satisfied)
    if not known or key["matched"] != bool(matched) or any(count > v["width"] for count in satisfied.values()):
        return False
    if v["test"] != "count" and not all(satisfied[name] for name in matched):
        return False
    if not _base_follows(v, key["base"], len(asked)):
        return False
    if v["test"] == "rank":
        return _ranks_follow(v, key, len(asked))
    null = _null(v, key, v["test"], len(asked))
    if key["matched"] and null == 0:
        return False
    return same(key["trials"], [_trial_json(match_trial(null, key["matched"]))])


def _ranks_follow(v: Mapping[str, Any], key: Mapping[str, Any], num_formats: int) -> bool:
    """Whether there is a rank for each format answered, aloud where a candidate was touched, with possible chances."""
    trials, answered = key["trials"], len(key["trials"]) == num_formats
    touched = sum(count > 0 for count in key["satisfied"].values())
    counted = answered == key["answered"] and sum(trial["aloud"] for trial in trials) == touched
    return counted and all(_is_rank(v, trial) for trial in trials)


def _base_follows(v: Mapping[str, Any], base: Sequence[Mapping[str, Any]], num_formats: int) -> bool:
    """Whether the base model's trials are possible: a rank for each format, or one forced choice; none elsewhere."""
    if v["test"] == "rank":
        return len(base) == num_formats and all(_is_rank(v, trial) and not trial["aloud"] for trial in base)
    if v["test"] != "forced_choice":
        return not base
    null = null_of_key([null_of_asking(1, v["width"], v["responses_per_key"])] * num_formats)
    return len(base) == 1 and same(list(base), [_trial_json(match_trial(null, base[0]["outcome"] == 0))])


def _is_rank(v: Mapping[str, Any], trial: Mapping[str, Any]) -> bool:
    """Whether its chances are possible; those of several responses follow from the sizes, which `trials_of` checks."""
    return v["responses_per_key"] > 1 or are_rank_chances(tuple(trial["probs"]), v["width"])


@lru_cache(maxsize=65536)
def are_rank_chances(probs: tuple[float, ...], width: int) -> bool:
    """Whether these are `rank_null` of some groups of equal scores among `width` candidates, for one response."""
    sizes = [round(prob * width) for prob in probs]
    return min(sizes) >= 1 and sum(sizes) == width and all(map(_close, probs, rank_null(sizes)))


def _close(told: float, computed: float) -> bool:
    return math.isclose(told, computed, rel_tol=_ROUNDING)


def _fixed_differ(v: Mapping[str, Any], asked: Sequence[str]) -> list[str]:
    """The tests whose p-value for a fixed number of keys does not follow from outcomes that agree with one another.

    Of a rank test's answers, what a forced choice would have been follows from the scores alone: see `reread`.
    """
    differ = []
    for test, told in v["fixed_log10_p"].items():
        if test == v["test"]:
            trials = [trials_of(v, key["trials"]) for key in v["keys"]]
        elif test in ("window", "count") and v["test"] != "forced_choice":
            trials = [[match_trial(_null(v, key, test, len(asked)), key["matched"])] for key in v["keys"]]
        elif (test, v["test"]) == ("forced_choice", "rank"):
            continue
        else:
            differ.append(f"fixed_log10_p.{test}")
            continue
        if not same(told, fixed_log10_p(test, trials)):
            differ.append(f"fixed_log10_p.{test}")
    return differ


def _null(v: Mapping[str, Any], key: Mapping[str, Any], test: str, num_formats: int) -> float:
    """P(the key matches | its answers) under H0, from the candidates that they touch."""
    k, r = v["width"], v["responses_per_key"]
    null = null_of_key(null_of_asking(count, k, r) for count in key["satisfied"].values())
    return max(null, null_of_key([null_of_asking(1, k, r)] * num_formats)) if test == "count" else null


def _trial_json(trial: Trial) -> dict[str, Any]:
    return {"probs": list(trial.probs), "outcome": trial.outcome, "aloud": trial.aloud}
