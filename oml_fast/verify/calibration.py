"""A second opinion: the same test on models that were never fingerprinted, with the keys that the suspect was asked.

The verdict's p-values need no such models. But a set may have been selected by its draws, so that innocent relatives of
its base model prefer the responses; then these models are convicted as well, and that is to be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..completer import Completer
from ..errors import InvalidArgumentError
from ..fingerprint import FingerprintSet
from . import statistics
from .asking import Asker, choose_test
from .matching import MatchRule, match_rule
from .replay import evidence
from .statistics import convicts
from .trials import read
from .verdict import Limits
from .verification import Verification


@dataclass(frozen=True, slots=True)
class NullModel:
    """What one model that was never fingerprinted answered to the keys that the suspect was asked.

    log10_p_value: of its answers by the verification's own test; `match` where that would convict it.
    """

    name: str
    matches: int
    queried: int
    log10_p_value: float
    match: bool


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
    Raises InvalidArgumentError where there is no null model, or one that does not allow the verification's test.
    """
    if not null_models:
        raise InvalidArgumentError("no null model to calibrate with: name one that was never fingerprinted.")
    models = tuple(_ask(fingerprints, completer, verification) for completer in null_models)
    matches, queried = sum(model.matches for model in models), sum(model.queried for model in models)
    null_rate = statistics.clopper_pearson(matches, queried)[1]
    log10_p = statistics.count_test(verification.matches, verification.queried, null_rate)
    return Calibration(models, null_rate, log10_p)


def _ask(fingerprints: FingerprintSet, completer: Completer, verification: Verification) -> NullModel:
    test, _ = choose_test(verification.test, fingerprints, completer)
    rule: MatchRule = match_rule(verification.match_rule)
    asker = Asker(fingerprints, completer, test, rule, None)
    asked = asker.ask([key.number for key in verification.keys])
    readings = [read(test, rule, fingerprints.settings, fingerprint, answers) for fingerprint, answers in asked]
    limits = Limits(verification.false_positive_rate, verification.smallest_fsr, verification.miss_rate)
    log10_p = evidence(test, verification.mode, limits, [reading.trials for reading in readings])
    matches = sum(bool(reading.matched_formats) for reading in readings)
    guilty = convicts(log10_p, limits.false_positive_rate)
    return NullModel(completer.name, matches, len(readings), log10_p, guilty)
