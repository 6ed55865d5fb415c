"""verify: ask a suspect model the keys of a fingerprint set, and give a verdict with its error probability."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .. import __version__
from ..completer import Completer, Completion
from ..errors import CompleterError, InvalidArgumentError
from ..fingerprint import Fingerprint, FingerprintSet
from . import statistics
from .matching import ExactMatch, MatchRule
from .verdict import decide


@dataclass(frozen=True, slots=True)
class KeyOutcome:
    """What one key gave, without the key. `satisfied` is c in each format: how many candidates the answer touched."""

    number: int
    matched: bool
    matched_formats: tuple[str, ...]
    satisfied: dict[str, int]


@dataclass(frozen=True, slots=True)
class Verification:
    """A verdict and everything it rests on, but no key and no response.

    `informative` keys are those whose answer touched a window; `fsr_interval` is Clopper-Pearson at 95 %; `p_value` is
    0.0 where it is below the smallest float, `log10_p_value` never. The other test's p-value is for comparison.
    """

    verdict: str
    reason: str
    test: str
    false_positive_rate: float
    p_value: float
    log10_p_value: float
    queried: int
    num_fingerprints: int
    matches: int
    informative: int
    fsr: float
    fsr_interval: tuple[float, float]
    fsr_by_format: dict[str, float]
    bits_per_key: float
    other_test: str
    other_p_value: float
    other_log10_p_value: float
    smallest_fsr: float
    miss_rate: float
    match_rule: str
    completer: str
    set_digest: str
    seconds: float
    fingerprints_per_second: float
    oml_fast_version: str
    keys: tuple[KeyOutcome, ...]

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return dict(json.loads(json.dumps(asdict(self))))


def verify(
    fingerprints: FingerprintSet,
    completer: Completer,
    *,
    num_keys: int | None = None,
    test: str = "window",
    false_positive_rate: float = 1e-6,
    smallest_fsr: float = 0.5,
    miss_rate: float = 1e-2,
) -> Verification:
    """Ask the first `num_keys` keys (None: all), in file order and in every format of the set, and give the verdict.

    The test and its rates are fixed before anything is asked. Every key asked is spent: revealed to the suspect.
    Raises InvalidArgumentError, and CompleterError when the suspect could not be asked.
    """
    rates = {"false-positive rate": false_positive_rate, "smallest FSR": smallest_fsr, "miss rate": miss_rate}
    asked = _keys_to_ask(fingerprints, completer, num_keys, test, rates)
    length = fingerprints.settings.response_length
    start = time.perf_counter()
    completions = {name: _ask(asked, name, completer, length) for name in fingerprints.settings.formats}
    seconds = time.perf_counter() - start

    rule = ExactMatch()
    keys = _outcomes(asked, completions, rule)
    matches = sum(key.matched for key in keys)
    log10_p, informative = _log10_p_values(keys, matches, fingerprints)
    other = "count" if test == "window" else "window"
    verdict, reason = decide(
        log10_p[test],
        matches,
        len(asked),
        false_positive_rate=false_positive_rate,
        smallest_fsr=smallest_fsr,
        miss_rate=miss_rate,
    )
    return Verification(
        verdict=verdict,
        reason=reason,
        test=test,
        false_positive_rate=false_positive_rate,
        p_value=statistics.p_value(log10_p[test]),
        log10_p_value=log10_p[test],
        queried=len(asked),
        num_fingerprints=len(fingerprints),
        matches=matches,
        informative=informative,
        fsr=matches / len(asked),
        fsr_interval=statistics.clopper_pearson(matches, len(asked)),
        fsr_by_format={name: sum(name in key.matched_formats for key in keys) / len(keys) for name in completions},
        bits_per_key=statistics.bits_per_key(log10_p[test], len(asked)),
        other_test=other,
        other_p_value=statistics.p_value(log10_p[other]),
        other_log10_p_value=log10_p[other],
        smallest_fsr=smallest_fsr,
        miss_rate=miss_rate,
        match_rule=rule.name,
        completer=completer.name,
        set_digest=fingerprints.digest(),
        seconds=seconds,
        fingerprints_per_second=len(asked) / max(seconds, 1e-9),
        oml_fast_version=__version__,
        keys=keys,
    )


def _keys_to_ask(
    fingerprints: FingerprintSet, completer: Completer, num_keys: int | None, test: str, rates: dict[str, float]
) -> tuple[Fingerprint, ...]:
    """Refuse whatever would make the verdict wrong, before a key is spent; then the fingerprints to ask."""
    if test not in statistics.TESTS:
        raise InvalidArgumentError(f"test {test!r} is unknown: choose {' or '.join(statistics.TESTS)}.")
    for name, rate in rates.items():
        if not 0 < rate < 1:
            raise InvalidArgumentError(f"{name} {rate}: it must lie between 0 and 1, both excluded.")
    if completer.tokenizer_digest != fingerprints.tokenizer_digest:
        raise InvalidArgumentError(
            f"the suspect's tokenizer ({completer.tokenizer_digest}) is not the one the fingerprints were made with "
            f"({fingerprints.tokenizer_digest}): load the suspect with the tokenizer of the base model "
            f"({fingerprints.base_model})."
        )
    count = len(fingerprints) if num_keys is None else num_keys
    if not 1 <= count <= len(fingerprints):
        raise InvalidArgumentError(f"cannot ask {count} keys: the set has {len(fingerprints)}; ask between 1 and that.")
    asked = fingerprints.fingerprints[:count]
    if len({fingerprint.key_ids for fingerprint in asked}) < count:
        raise InvalidArgumentError(
            "two fingerprints have the same key ids and so the same draw: generate the set again."
        )
    return asked


def _ask(asked: Sequence[Fingerprint], name: str, completer: Completer, length: int) -> list[Completion]:
    """One completion of at most `length` token ids for each key in the format `name`, in order. Or CompleterError."""
    completions = completer.complete([fingerprint.askings[name].prompt_ids for fingerprint in asked], length)
    if len(completions) != len(asked):
        raise CompleterError(
            f"{completer.name} gave {len(completions)} completions for {len(asked)} keys ({name}): "
            "it must give one for each, in order."
        )
    longest = max(len(completion.token_ids) for completion in completions)
    if longest > length:
        raise CompleterError(f"{completer.name} gave {longest} token ids where {length} were asked for ({name}).")
    return completions


def _outcomes(
    asked: Sequence[Fingerprint], completions: dict[str, list[Completion]], rule: MatchRule
) -> tuple[KeyOutcome, ...]:
    """One outcome for each key: it matched if any of its responses did, in any format."""
    outcomes = []
    for i, fingerprint in enumerate(asked):
        answers = {name: completions[name][i] for name in completions}
        matched = tuple(
            name
            for name, answer in answers.items()
            if any(rule.matches(answer, response) for response in fingerprint.askings[name].responses)
        )
        satisfied = {name: rule.satisfied(answer, fingerprint.askings[name]) for name, answer in answers.items()}
        outcomes.append(KeyOutcome(fingerprint.number, bool(matched), matched, satisfied))
    return tuple(outcomes)


def _log10_p_values(
    keys: Sequence[KeyOutcome], matches: int, fingerprints: FingerprintSet
) -> tuple[dict[str, float], int]:
    """log10 p of each test, and how many keys were informative."""
    settings = fingerprints.settings
    of_asking = [
        statistics.null_of_asking(c, settings.width, settings.responses_per_key) for c in range(settings.width + 1)
    ]
    nulls = [statistics.null_of_key(of_asking[c] for c in key.satisfied.values()) for key in keys]
    most = statistics.null_of_key([of_asking[1]] * len(settings.formats))
    log10_p = {
        "window": statistics.window_test(nulls, matches),
        "count": statistics.count_test(matches, len(keys), most),
    }
    return log10_p, sum(null > 0 for null in nulls)
