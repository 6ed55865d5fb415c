"""The fact on which every verdict rests: among accepted fingerprints, the choice in the window is uniform.

Whatever is rejected (keys, candidates, duplicates), the index that is left must be uniform over the window, and know
nothing of the window, of the key, or of the fingerprint before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import generate
from oml_fast.models import LanguageModel

SECRET = bytes(range(32))
LEAST = 1e-4  # with a fixed secret every p-value below is a fixed number; under a uniform draw one in 10,000 is less


def columns(made: FingerprintSet, name: str = "raw", slot: int = 0) -> dict[str, Any]:
    askings = [fingerprint.askings[name] for fingerprint in made]
    return {
        "index": np.array([asking.responses[slot].index for asking in askings]),
        "nucleus_size": np.array([asking.nucleus_size for asking in askings]),
        "first_probability": np.array([asking.window.probs[0] for asking in askings]),
        "first_id": np.array([asking.window.token_ids[0] for asking in askings]),
    }


def uniform(index: Any, width: int) -> float:
    """The p-value of a uniform index."""
    return float(stats.chisquare(np.bincount(index, minlength=width)).pvalue)


def independent(index: Any, other: Any, width: int) -> float:
    """The p-value of an index that has nothing to do with the `other` column, a number of classes."""
    table = np.zeros((int(other.max()) + 1, width))
    np.add.at(table, (other, index), 1)
    return float(stats.chi2_contingency(table[table.sum(1) > 0]).pvalue)


@pytest.mark.slow
def test_the_index_is_uniform_and_knows_nothing(tiny_model: LanguageModel) -> None:
    """20,000 accepted fingerprints, with keys of nine ids: so short that some are rejected."""
    settings = Settings(key_source="words", key_length=9)
    generation = generate(tiny_model, 20_000, SECRET, settings=settings, batch_size=512)
    assert len(generation.fingerprints) == 20_000
    assert generation.rejected["key_predictable"] > 100
    found = columns(generation.fingerprints)
    index = found["index"]
    p_values = {
        "uniform": uniform(index, 16),
        "independent of the one before": independent(index[1:], index[:-1], 16),
        "uniform steps": uniform(np.diff(index) % 16, 16),
    }
    for name in ("nucleus_size", "first_probability", "first_id"):
        above = found[name] > np.median(found[name])
        assert 2000 < above.sum() < 18_000
        p_values[f"independent of {name}"] = independent(index, above.astype(int), 16)
        p_values[f"uniform where {name} is high"] = uniform(index[above], 16)
        p_values[f"uniform where {name} is low"] = uniform(index[~above], 16)
    assert {name: p for name, p in p_values.items() if p <= LEAST} == {}
    require_unweighted(generation.fingerprints)


def require_unweighted(made: FingerprintSet) -> None:
    """A draw weighted by probability, or one that drops what fits badly, would show here first."""
    probs = np.array([fingerprint.askings["raw"].window.probs for fingerprint in made])
    share = probs / probs.sum(1, keepdims=True)
    chosen = share[np.arange(len(made)), columns(made)["index"]]
    assert chosen.mean() == pytest.approx(1 / 16, abs=4 * share.std() / np.sqrt(len(made)))


def test_three_candidates_two_responses_two_formats(tiny_model: LanguageModel) -> None:
    """The published width; draws without replacement are uniform over ordered pairs, and apart in each format."""
    settings = Settings(width=3, responses_per_key=2, key_source="words", key_length=9, formats=("raw", "chat"))
    made = generate(tiny_model, 2000, SECRET, settings=settings, batch_size=512).fingerprints
    pairs = {}
    for name in settings.formats:
        first, second = (columns(made, name, slot)["index"] for slot in (0, 1))
        assert (first != second).all()
        pairs[name] = 2 * first + (second - first) % 3 - 1
        assert uniform(pairs[name], 6) > LEAST
    assert independent(pairs["raw"], pairs["chat"], 6) > LEAST
