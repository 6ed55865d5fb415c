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

pytestmark = pytest.mark.xdist_group("uniform draw")  # one process makes the 20,000 for all

SECRET = bytes(range(32))
LEAST = 1e-4  # with a fixed secret every p-value below is a fixed number; under a uniform draw one in 10,000 is less


@pytest.fixture(scope="module")
def many(tiny_model: LanguageModel) -> FingerprintSet:
    """20,000 accepted fingerprints. Keys of nine ids: short enough that some are rejected."""
    generation = generate(
        tiny_model, 20_000, SECRET, settings=Settings(key_source="words", key_length=9), batch_size=512
    )
    assert generation.rejected["key_predictable"] > 100
    return generation.fingerprints


def columns(made: FingerprintSet, name: str = "raw", slot: int = 0) -> dict[str, Any]:
    askings = [fingerprint.askings[name] for fingerprint in made]
    return {
        "index": np.array([asking.responses[slot].index for asking in askings]),
        "nucleus_size": np.array([asking.nucleus_size for asking in askings]),
        "first_probability": np.array([asking.window.probs[0] for asking in askings]),
        "first_id": np.array([asking.window.token_ids[0] for asking in askings]),
        "key_length": np.array([len(fingerprint.key_ids) for fingerprint in made]),
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
def test_the_index_is_uniform_over_the_window(many: FingerprintSet) -> None:
    assert len(many) == 20_000
    assert uniform(columns(many)["index"], 16) > LEAST


@pytest.mark.slow
@pytest.mark.parametrize("column", ["nucleus_size", "first_probability", "first_id", "key_length"])
def test_the_index_knows_nothing_of_the_window_or_the_key(many: FingerprintSet, column: str) -> None:
    found = columns(many)
    above = (found[column] > np.median(found[column])).astype(int)
    assert 1000 < above.sum() < 19_000 or column == "key_length"
    assert independent(found["index"], above, 16) > LEAST
    for half in (0, 1):
        if (above == half).sum() > 1000:
            assert uniform(found["index"][above == half], 16) > LEAST


@pytest.mark.slow
def test_the_index_knows_nothing_of_the_one_before(many: FingerprintSet) -> None:
    index = columns(many)["index"]
    assert independent(index[1:], index[:-1], 16) > LEAST
    assert uniform(np.diff(index) % 16, 16) > LEAST


@pytest.mark.slow
def test_the_index_is_not_that_of_the_most_probable_candidate(many: FingerprintSet) -> None:
    """A draw weighted by probability, or one that drops what fits badly, would show here first."""
    probs = np.array([fingerprint.askings["raw"].window.probs for fingerprint in many])
    chosen = probs[np.arange(len(many)), columns(many)["index"]]
    share = (chosen / probs.sum(1)).mean()
    deviation = (probs / probs.sum(1, keepdims=True)).std(1) / np.sqrt(len(many))
    assert share == pytest.approx(1 / 16, abs=4 * deviation.mean())


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
