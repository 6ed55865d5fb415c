"""verify: ask a suspect model the keys of a fingerprint set, and give a verdict with its error probability."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .. import __version__
from ..completer import Completer, identity
from ..errors import InvalidArgumentError
from ..fingerprint import Fingerprint, FingerprintSet
from . import statistics
from .asking import Asker, choose_test
from .journal import Journal
from .matching import ExactMatch, MatchRule
from .replay import fixed_log10_p, replay
from .sequential import SequentialTest
from .spending import Attempt, InOrder
from .trials import Answers, Ranks, Reading, Trial, base_trials, count_null, preferred, read
from .verdict import Limits, silent

Report = Callable[["Verification"], tuple[Mapping[str, Any], str]]

MODES = ("sequential", "fixed")
_MOST_UNANSWERED = 8  # keys without an answer, after which no more are spent on a suspect that keeps silent


@dataclass(frozen=True, slots=True)
class KeyOutcome:
    """What one key gave, without the key. `satisfied` is c in each format: how many candidates the answer touched.

    `trials` are the chances of the outcomes under H0 and which was seen (of ranks of several responses what both follow
    from), so that a reader can compute the verdict anew; `base` those of a suspect that prefers candidates as the base
    model does, in the tests that see preferences.
    `log10_e` is the evidence after this key; None where the number of keys was fixed.
    """

    number: int
    matched: bool
    matched_formats: tuple[str, ...]
    satisfied: dict[str, int]
    answered: bool
    trials: tuple[Trial | Ranks, ...]
    base: tuple[Trial | Ranks, ...]
    log10_e: float | None


@dataclass(frozen=True, slots=True)
class Verification:
    """A verdict and everything it rests on, but no key and no response.

    `informative` keys are those whose answers could have told the owner's draw from another. In sequential mode the
    p-value is anytime-valid and `fsr_interval` a confidence sequence; with a fixed number of keys they are exact and
    Clopper-Pearson; both intervals are at 95 %. `p_value` is 0.0 where it is below the smallest float, `log10_p_value`
    never. `fixed_log10_p` are the exact p-values of every test that the answers allow, for comparison only: they hold
    where the number of keys was fixed beforehand. `unanswered` keys count as no match. `base_log10_p`: the p-value that
    the base model's own order of the candidates would have; where that is a match too, the verdict is not. `identity`:
    which suspect it was, the digest of its weights or its address.
    """

    verdict: str
    reason: str
    test: str
    test_reason: str
    mode: str
    match_rule: str
    false_positive_rate: float
    smallest_fsr: float
    miss_rate: float
    p_value: float
    log10_p_value: float
    log10_miss: float
    base_log10_p: float | None
    queried: int
    num_fingerprints: int
    matches: int
    informative: int
    unanswered: int
    fsr: float
    fsr_interval: tuple[float, float]
    fsr_by_format: dict[str, float]
    bits_per_key: float
    fixed_log10_p: dict[str, float]
    width: int
    responses_per_key: int
    completer: str
    identity: str
    set_digest: str
    attempt: str
    seconds: float
    fingerprints_per_second: float
    oml_fast_version: str
    keys: tuple[KeyOutcome, ...]

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return dict(json.loads(json.dumps(asdict(self))))

    def bits_by_test(self) -> dict[str, float]:
        """Bits of evidence a key, by each test of `fixed_log10_p`, the strongest first."""
        found = self.fixed_log10_p
        return {test: statistics.bits_per_key(found[test], self.queried) for test in statistics.TESTS if test in found}


def verify(
    fingerprints: FingerprintSet,
    completer: Completer,
    *,
    num_keys: int | None = None,
    test: str = "auto",
    rule: MatchRule | None = None,
    mode: str = "sequential",
    false_positive_rate: float = 1e-6,
    smallest_fsr: float = 0.5,
    miss_rate: float = 1e-2,
    order: Sequence[int] | None = None,
    attempt: Attempt | None = None,
    journal: Journal | None = None,
    report: Report | None = None,
) -> Verification:
    """Ask keys in every format of the set, and give the verdict.

    mode: "sequential" asks as few keys as the verdict needs, at most `num_keys`; "fixed" asks `num_keys` (None: all).
    test: "auto" takes the strongest that the suspect allows, before anything is asked: rank, forced_choice, window,
    count. order: key numbers in the order of asking (None: as in the file). attempt: takes keys from the registry
    instead, in its own order. journal: keeps each answer, and goes on where an earlier call was stopped. report: makes,
    and keeps, the report that the attempt then ends with, and its digest; None: the verification is the report.

    Test, rule and rates are fixed before anything is asked. Every key asked is spent: revealed to the suspect. Raises
    InvalidArgumentError, and CompleterError when the suspect could not be asked.
    """
    limits = Limits(false_positive_rate, smallest_fsr, miss_rate)
    rule = ExactMatch() if rule is None else rule
    most = _most_keys(fingerprints, completer, num_keys, mode)
    chosen, reason = choose_test(test, fingerprints, completer)
    keys = InOrder(_checked_order(fingerprints, order)) if attempt is None else attempt
    digest = fingerprints.digest()
    if journal is not None:
        journal.start(_header(digest, completer, chosen, rule, mode, limits, keys, most))
    asker = Asker(fingerprints, completer, chosen, rule, journal)
    start = time.perf_counter()
    line = _Line(fingerprints, chosen, rule, limits, sequential=mode == "sequential")
    while wanted := line.wanted(most):
        taken = keys.take(wanted)
        line.refuse_again(taken)
        for fingerprint, answers in asker.ask(taken):
            line.add(fingerprint, answers)
        if len(taken) < wanted:
            break
    verification = line.end(reason, completer, digest, keys.id, time.perf_counter() - start)
    keys.ended(verification.verdict, *((verification.to_json(),) if report is None else report(verification)))
    return verification


class _Line:
    """The one straight way from answers to verdict: each key read, the test brought up to date, the end decided."""

    def __init__(
        self, fingerprints: FingerprintSet, test: str, rule: MatchRule, limits: Limits, *, sequential: bool
    ) -> None:
        self._set, self._test, self._rule, self._limits = fingerprints, test, rule, limits
        rates = (limits.false_positive_rate, limits.smallest_fsr, limits.miss_rate)
        self._sequential = SequentialTest(test, *rates) if sequential else None
        self._outcomes: list[KeyOutcome] = []
        self._answers: list[tuple[Fingerprint, Answers]] = []

    def wanted(self, most: int) -> int:
        """How many keys to ask next: as many as the verdict needs at least, so that none is spent in vain."""
        left = most - len(self._outcomes)
        if self._sequential is None:
            return left
        verdict = self._sequential.verdict()
        if verdict == "no_match" and self._too_silent():
            return min(left, 1)
        if verdict != "inconclusive":
            return 0
        return min(left, self._sequential.fewest_more(_best(self._test, self._set)))

    def _too_silent(self) -> bool:
        """Whether a few keys without an answer stand in the way of a no_match; many of them end the asking."""
        unanswered = sum(not key.answered for key in self._outcomes)
        return silent(unanswered, len(self._outcomes)) and unanswered < _MOST_UNANSWERED

    def refuse_again(self, taken: Sequence[int]) -> None:
        """A key that counted twice would be one chance counted as two."""
        seen = [*(key.number for key in self._outcomes), *taken]
        if len(set(seen)) < len(seen):
            raise InvalidArgumentError("a key was handed out twice in one verification: its account is damaged.")

    def add(self, fingerprint: Fingerprint, answers: Answers) -> None:
        reading = read(self._test, self._rule, self._set.settings, fingerprint, answers)
        log10_e = None
        if self._sequential is not None:
            self._sequential.add(reading.trials, bool(reading.matched_formats))
            log10_e = self._sequential.log10_e
        self._answers.append((fingerprint, answers))
        base = base_trials(self._test, self._set.settings, fingerprint)
        self._outcomes.append(_outcome(fingerprint.number, reading, base, log10_e))

    def end(self, test_reason: str, completer: Completer, digest: str, attempt: str, seconds: float) -> Verification:
        keys, settings = tuple(self._outcomes), self._set.settings
        if not keys:
            raise InvalidArgumentError(
                "no key of this set is left to ask: all are spent. Generate a new set, or allow keys to be asked again."
            )
        known = {
            "test": self._test,
            "test_reason": test_reason,
            "mode": "fixed" if self._sequential is None else "sequential",
            "match_rule": self._rule.name,
            **asdict(self._limits),
            "num_fingerprints": len(self._set),
            "fsr_by_format": {n: sum(n in key.matched_formats for key in keys) / len(keys) for n in settings.formats},
            "fixed_log10_p": self._fixed_log10_p(),
            "width": settings.width,
            "responses_per_key": settings.responses_per_key,
            "completer": completer.name,
            "identity": identity(completer),
            "set_digest": digest,
            "attempt": attempt,
            "seconds": seconds,
            "fingerprints_per_second": len(keys) / max(seconds, 1e-9),
            "oml_fast_version": __version__,
        }
        computed = replay({**known, "keys": [asdict(key) for key in keys]})
        computed.pop("log10_e")
        return Verification(**known, **computed, keys=keys)

    def _fixed_log10_p(self) -> dict[str, float]:
        """Exact p-values of every test that these answers allow, were the number of keys fixed."""
        tests = ["forced_choice"] if self._test == "forced_choice" else ["window", "count"]
        if not self._set.has_windows:
            tests = ["count"]
        elif self._test == "rank":
            tests = ["rank", "forced_choice", *tests]
        return {test: fixed_log10_p(test, [self._trials(test, *key) for key in self._answers]) for test in tests}

    def _trials(self, test: str, fingerprint: Fingerprint, answers: Answers) -> tuple[Trial | Ranks, ...]:
        if test == "forced_choice" and self._test == "rank":
            answers = {name: preferred(fingerprint.askings[name], answer) for name, answer in answers.items()}
        return read(test, self._rule, self._set.settings, fingerprint, answers).trials


def _outcome(number: int, reading: Reading, base: tuple[Trial | Ranks, ...], log10_e: float | None) -> KeyOutcome:
    return KeyOutcome(
        number,
        bool(reading.matched_formats),
        reading.matched_formats,
        reading.satisfied,
        reading.answered,
        reading.trials,
        base,
        log10_e,
    )


def _best(test: str, fingerprints: FingerprintSet) -> list[Trial | Ranks]:
    """The most telling trials that one key can give."""
    settings = fingerprints.settings
    width, responses = settings.width, settings.responses_per_key
    if responses == width:
        return []
    if test == "count":
        null = count_null(settings)
        return [Trial((null, 1 - null), 0)]
    if test == "rank" and responses > 1:
        return [Ranks((1,) * width, tuple(range(responses)), aloud=True)] * len(settings.formats)
    first = 1 - (width - 1) / width if responses == 1 else 0.0
    null = first or statistics.null_of_asking(1, width, responses)
    return [Trial((null, 1 - null), 0, aloud=True)] * (len(settings.formats) if test == "rank" else 1)


def require_count(fingerprints: FingerprintSet, num_keys: int | None) -> int:
    """How many keys may be asked, all where None is given. InvalidArgumentError where the set has not as many."""
    count = len(fingerprints) if num_keys is None else num_keys
    if not 1 <= count <= len(fingerprints):
        raise InvalidArgumentError(f"cannot ask {count} keys: the set has {len(fingerprints)}; ask between 1 and that.")
    return count


def _most_keys(fingerprints: FingerprintSet, completer: Completer, num_keys: int | None, mode: str) -> int:
    """Refuse whatever would make the verdict wrong, before a key is spent; then how many keys may be asked."""
    if mode not in MODES:
        raise InvalidArgumentError(f"mode {mode!r} is unknown: choose {' or '.join(MODES)}.")
    if completer.tokenizer_digest not in ("", fingerprints.tokenizer_digest):
        raise InvalidArgumentError(
            f"the suspect's tokenizer ({completer.tokenizer_digest}) is not the one the fingerprints were made with "
            f"({fingerprints.tokenizer_digest}): read the suspect with the tokenizer of the base model "
            f"({fingerprints.base_model}), which --tokenizer FOLDER names."
        )
    count = require_count(fingerprints, num_keys)
    if len({fingerprint.number for fingerprint in fingerprints}) < len(fingerprints):
        raise InvalidArgumentError(
            "two fingerprints have the same number, so one key would count twice: restore the set."
        )
    if len({fingerprint.key_ids for fingerprint in fingerprints}) < len(fingerprints):
        raise InvalidArgumentError(
            "two fingerprints have the same key ids and so the same draw: generate the set again."
        )
    return count


def _digest_of(numbers: Sequence[int]) -> str:
    return hashlib.sha256(",".join(map(str, numbers)).encode()).hexdigest()


def _checked_order(fingerprints: FingerprintSet, order: Sequence[int] | None) -> tuple[int, ...]:
    numbers = tuple(fingerprint.number for fingerprint in fingerprints)
    if order is None:
        return numbers
    if sorted(order) != sorted(numbers):
        raise InvalidArgumentError("the order of asking does not name each key of the set once.")
    return tuple(order)


def _header(
    digest: str,
    completer: Completer,
    test: str,
    rule: MatchRule,
    mode: str,
    limits: Limits,
    attempt: Attempt,
    most: int,
) -> Mapping[str, Any]:
    """What answers belong to: a journal of anything else is not gone on with.

    The order is in it, or lucky keys could be put in front; and where their number is fixed, how many keys.
    """
    return {
        "set_digest": digest,
        "completer": completer.name,
        "identity": identity(completer),
        "test": test,
        "match_rule": rule.name,
        "mode": mode,
        **asdict(limits),
        "attempt": attempt.id,
        "order": _digest_of(attempt.numbers) if isinstance(attempt, InOrder) else "",
        "keys": most if mode == "fixed" else None,
    }
