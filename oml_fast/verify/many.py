"""Many suspects, many sets: every pair verified, and the chance of any false accusation held over all of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..completer import Completer
from ..errors import InvalidArgumentError
from ..fingerprint import FingerprintSet
from .multiple import e_bh, holm
from .statistics import convicts
from .verdict import chance
from .verification import Verification, verify

Verifier = Callable[[str, str, FingerprintSet, Completer, float], Verification]


@dataclass(frozen=True, slots=True)
class Pair:
    """One set against one suspect. `verdict` is Holm's: the verification's own only says when its asking stopped.

    log10_adjusted_p: Holm's adjusted p-value. discovered: whether e-BH rejects too, which bounds the share of false
    ones among many matches where Holm bounds the chance of any.
    """

    suspect: str
    set_name: str
    verdict: str
    log10_adjusted_p: float
    discovered: bool
    verification: Verification


@dataclass(frozen=True, slots=True)
class Verifications:
    """Every set against every suspect, at one false-positive rate for all together."""

    false_positive_rate: float
    pairs: tuple[Pair, ...]

    def matches(self, suspect: str) -> list[str]:
        """The sets that are in that suspect, the surest first."""
        found = [pair for pair in self.pairs if pair.suspect == suspect and pair.verdict == "match"]
        return [pair.set_name for pair in sorted(found, key=lambda pair: pair.log10_adjusted_p)]

    def reason(self, suspect: str) -> str:
        """What was found in that suspect, in a sentence or two."""
        own = [pair for pair in self.pairs if pair.suspect == suspect]
        limit = chance(math.log10(self.false_positive_rate))
        if names := self.matches(suspect):
            surest = min(own, key=lambda pair: pair.log10_adjusted_p)
            several = "" if len(names) == 1 else " More than one set matches: copies were merged, or a set leaked."
            return (
                f"{', '.join(names)}: by chance with a probability of {chance(surest.log10_adjusted_p)} at most, "
                f"{len(self.pairs)} asked in all (limit {limit}).{several}"
            )
        unsure = [pair.set_name for pair in own if pair.verdict == "inconclusive"]
        rest = f" Inconclusive: {', '.join(unsure)}." if unsure else ""
        return f"No set of {len(own)} matches (limit {limit}, {len(self.pairs)} asked in all).{rest}"

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON values, with what was found in each suspect."""
        suspects = dict.fromkeys(pair.suspect for pair in self.pairs)
        found = {name: {"matches": self.matches(name), "reason": self.reason(name)} for name in suspects}
        return dict(json.loads(json.dumps({**asdict(self), "suspects": found})))


def verify_many(
    suspects: Mapping[str, Callable[[], Completer]],
    sets: Mapping[str, FingerprintSet],
    *,
    false_positive_rate: float = 1e-6,
    verify_pair: Verifier | None = None,
    **how: Any,
) -> Verifications:
    """Verify every set against every suspect. Names give suspects, loaded one at a time, and sets.

    Each of N pairs is asked at false_positive_rate / N, so that one that stops with a match is one for Holm too; then
    Holm decides over all. `how` goes to `verify`; `verify_pair(suspect, set name, set, completer, rate)` stands in for
    it. Raises what `verify` raises, and InvalidArgumentError where there is nothing to ask.
    """
    if not suspects or not sets:
        raise InvalidArgumentError("no suspect or no set to verify: name at least one of each.")
    digests = {made.digest() for made in sets.values()}
    if len(digests) < len(sets):
        raise InvalidArgumentError("two of the sets are the same: keep one of them.")

    def plain(suspect: str, name: str, made: FingerprintSet, completer: Completer, rate: float) -> Verification:
        return verify(made, completer, false_positive_rate=rate, **how)

    one = plain if verify_pair is None else verify_pair
    rate = false_positive_rate / (len(suspects) * len(sets))
    asked = []
    for suspect, load in suspects.items():
        completer = load()
        asked += [(suspect, name, one(suspect, name, made, completer, rate)) for name, made in sets.items()]
    adjusted = holm([v.log10_p_value for *_, v in asked])
    evidence = [v.keys[-1].log10_e for *_, v in asked]  # E where the test stopped is an e-value; a fixed one has none
    found = e_bh([e if e is not None else 0.0 for e in evidence], false_positive_rate)
    pairs = []
    for (suspect, name, v), p, discovered in zip(asked, adjusted, found, strict=True):
        verdict = "match" if convicts(p, false_positive_rate) else v.verdict
        pairs.append(Pair(suspect, name, verdict, p, discovered, v))
    return Verifications(false_positive_rate, tuple(pairs))
