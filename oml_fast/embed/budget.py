"""What a set is worth in the model that carries it: evidence per key, keys to a verdict, and the drift it cost."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

from ..fingerprint import FingerprintSet, Settings
from ..measure import Drift
from ..models import HfCompleter, LanguageModel
from ..verify import sequential_cost, verify

_FALSE_POSITIVE_RATE = 1e-6
_CONFIDENCE = 0.95
_MOST_KEYS = 1000  # of a simulated verification


@dataclass(frozen=True, slots=True)
class Budget:
    """Of all keys, asked greedily of the model that carries them.

    bits_per_key: by test, the strongest first, -log2 of the p-value of all answers over the number of keys.
    keys_to_verdict: by test, the median number of keys to a sequential match at 1e-6 on a model with this FSR, as
    `sequential_cost` simulates it (a key that matches has all its responses first); None where half of the runs do not
    get there with the keys of the set, or 1000.
    kl, kl_standard_error, kl_upper_bound: nats, KL(base || model) on text; the bound is one-sided, at 95 %, and takes
    the mean for normal.
    """

    fsr: float
    bits_per_key: dict[str, float]
    keys_to_verdict: dict[str, int | None]
    kl: float
    kl_standard_error: float
    kl_upper_bound: float

    def warnings(self, max_drift: float) -> list[str]:
        """What the owner should know before release, a line each; max_drift in nats."""
        if self.kl_upper_bound <= max_drift:
            return []
        return [
            f"the drift may be as high as {self.kl_upper_bound:.3f} nats ({self.kl:.3f} +- "
            f"{self.kl_standard_error:.3f}; one-sided, at 95 %), above the limit of {max_drift:g} (--max-drift): see "
            "what it did with oml-fast evaluate utility, or embed fewer fingerprints, or with --preset harmless."
        ]


def budget(model: LanguageModel, fingerprints: FingerprintSet, drift: Drift) -> Budget:
    """Ask `model` every key once, by the test that sees most, and count what the answers give; `drift` is the model's.

    Imported sets have no windows: for them the count test is all there is. Raises CompleterError where logits are NaN.
    """
    asked = verify(fingerprints, HfCompleter(model), test="rank" if fingerprints.has_windows else "count", mode="fixed")
    bits = {test: bits for test, bits in asked.bits_by_test().items() if test != "count" or asked.test == "count"}
    most = min(_MOST_KEYS, len(fingerprints))
    return Budget(
        fsr=asked.fsr,
        bits_per_key=bits,
        keys_to_verdict={test: _keys_to_match(test, asked.fsr, fingerprints.settings, most) for test in bits},
        kl=drift.kl,
        kl_standard_error=drift.kl_standard_error,
        kl_upper_bound=drift.kl + NormalDist().inv_cdf(_CONFIDENCE) * drift.kl_standard_error,
    )


def _keys_to_match(test: str, fsr: float, settings: Settings, most_keys: int) -> int | None:
    cost = sequential_cost(
        fsr,
        settings.width,
        _FALSE_POSITIVE_RATE,
        test=test,
        responses=settings.responses_per_key,
        most_keys=most_keys,
    )
    return cost.median if cost.match >= 0.5 else None
