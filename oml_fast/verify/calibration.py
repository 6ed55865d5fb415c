"""A second opinion: how often models that were never fingerprinted answer the same keys. It decides nothing.

The verdict's p-values need no such models. Where a reader distrusts the uniform draw, these show what innocent models
do; but nobody can show that the null models are like the suspect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..completer import Completer
from ..errors import InvalidArgumentError
from ..fingerprint import FingerprintSet
from . import statistics
from .matching import MatchRule, match_rule
from .trials import read
from .verification import Verification


@dataclass(frozen=True, slots=True)
class NullModel:
    """What one model that was never fingerprinted answered to the keys that the suspect was asked."""

    name: str
    matches: int
    queried: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """null_rate: the upper end of the 95 % interval of the null models' FSR, pooled. p: of the suspect's matches."""

    models: tuple[NullModel, ...]
    null_rate: float
    log10_p_value: float


def calibrate(
    fingerprints: FingerprintSet, verification: Verification, null_models: Sequence[Completer]
) -> Calibration:
    """Ask null models, one's own copies of them, the keys of a verification: they are not spent by that.

    log10_p_value: P(Binomial(queried, null_rate) >= the suspect's matches), as if the number of keys had been fixed.
    """
    if not null_models:
        raise InvalidArgumentError("no null model to calibrate with: name one that was never fingerprinted.")
    rule = match_rule(verification.match_rule)
    numbers = [key.number for key in verification.keys]
    models = tuple(_ask(fingerprints, completer, rule, numbers) for completer in null_models)
    matches, queried = sum(model.matches for model in models), sum(model.queried for model in models)
    null_rate = statistics.clopper_pearson(matches, queried)[1]
    log10_p = statistics.count_test(verification.matches, verification.queried, null_rate)
    return Calibration(models, null_rate, log10_p)


def _ask(fingerprints: FingerprintSet, completer: Completer, rule: MatchRule, numbers: Sequence[int]) -> NullModel:
    settings, wanted = fingerprints.settings, set(numbers)
    asked = [fingerprint for fingerprint in fingerprints if fingerprint.number in wanted]
    length = rule.length(settings.response_length)
    answers = {
        name: completer.complete([fingerprint.askings[name].prompt_ids for fingerprint in asked], length)
        for name in settings.formats
    }
    readings = [
        read("count", rule, settings, fingerprint, {name: answers[name][i] for name in answers})
        for i, fingerprint in enumerate(asked)
    ]
    return NullModel(completer.name, sum(bool(reading.matched_formats) for reading in readings), len(asked))
