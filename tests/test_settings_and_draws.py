"""Settings of a fingerprint set, and the draws that its secret makes."""

from __future__ import annotations

import hmac
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from scipy import stats
from sets import OTHER_SECRET, SECRET, small_set

from oml_fast.errors import FingerprintFormatError, InvalidArgumentError
from oml_fast.fingerprint import Settings, draw_responses, settings_from

BOTH = ("raw", "chat")


# Settings


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"threshold": 1.0}, "threshold 1.0"),
        ({"threshold": -0.1}, "threshold -0.1"),
        ({"threshold": math.nan}, "threshold nan"),
        ({"threshold": "0.8"}, "threshold"),
        ({"threshold": None}, "threshold"),
        ({"width": 1}, "width 1"),
        ({"width": 16.0}, "width 16.0"),
        ({"width": True}, "width True"),
        ({"responses_per_key": 0}, "0 responses"),
        ({"responses_per_key": 17}, "17 responses"),
        ({"response_length": 0}, "response length 0"),
        ({"response_length": 33}, "response length 33"),
        ({"key_length": 1}, "key length 1"),
        ({"key_length": 513}, "key length 513"),
        ({"key_source": "hub"}, "'hub'"),
        ({"key_temperature": 0.0}, "temperature 0.0"),
        ({"key_temperature": "hot"}, "key_temperature 'hot'"),
        ({"key_temperature": math.inf}, "temperature inf"),
        ({"formats": []}, "formats"),
        ({"formats": ["raw", "raw"]}, "formats"),
        ({"formats": ["completion"]}, "completion"),
        ({"formats": "raw"}, "formats"),
        ({"formats": 3}, "formats"),
        ({"formats": [["raw"]]}, "formats"),
        ({"template_variables": []}, "template_variables"),
        ({"template_variables": {"date": math.nan}}, "template_variables"),
        ({"colour": 1}, "colour"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        settings_from(values)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_possible_settings_are_taken() -> None:
    assert settings_from({}) == Settings()
    assert settings_from({"threshold": 0, "formats": ["chat", "raw"]}).formats == ("chat", "raw")
    assert settings_from({"width": 3}).digest() != Settings().digest() == Settings().digest()


# Draws


def test_the_owners_secret_repeats_every_draw() -> None:
    small_set(20, formats=BOTH, responses_per_key=3).check_draws(SECRET)


def test_another_secret_is_refused_without_a_word_about_either() -> None:
    with pytest.raises(FingerprintFormatError) as caught:
        small_set(3).check_draws(OTHER_SECRET)
    assert not any(secret.hex() in str(caught.value) for secret in (SECRET, OTHER_SECRET))


def test_a_secret_that_fits_the_commitment_alone_is_not_enough() -> None:
    forged = replace(small_set(40), secret_commitment=small_set(1, secret=OTHER_SECRET).secret_commitment)
    with pytest.raises(FingerprintFormatError, match=r"fingerprint \d+, raw"):
        forged.check_draws(OTHER_SECRET)


def test_a_response_picked_by_hand_is_found() -> None:
    made = small_set(6)
    chosen = made.fingerprints[4]
    asked = chosen.askings["raw"]
    index = (asked.responses[0].index + 1) % 16
    response = replace(asked.responses[0], index=index, token_ids=(asked.window.token_ids[index],))
    changed = replace(chosen, askings={"raw": replace(asked, responses=(response,))})
    fingerprints = (*made.fingerprints[:4], changed, made.fingerprints[5])
    with pytest.raises(FingerprintFormatError, match="fingerprint 4, raw"):
        replace(made, fingerprints=fingerprints).check_draws(SECRET)


@pytest.mark.parametrize("changed", ["base_model_digest", "tokenizer_digest", "settings"])
def test_the_draw_is_bound_to_what_it_was_made_for(changed: str) -> None:
    made = small_set(40)
    values = {"base_model_digest": "0" * 64, "tokenizer_digest": "0" * 64, "settings": Settings(threshold=0.7)}
    with pytest.raises(FingerprintFormatError, match="not the one that the secret draws"):
        replace(made, **{changed: values[changed]}).check_draws(SECRET)


def drawn(key: tuple[int, ...], secret: bytes = SECRET, name: str = "raw", **settings: Any) -> tuple[int, ...]:
    return draw_responses(secret, "base", "tokenizer", Settings(**settings), name, key)


@pytest.mark.parametrize("width", [3, 16])
def test_draws_are_uniform(width: int) -> None:
    """Chi-square over 20,000 keys: each slot, and pairs of slots, for keys that differ by one id."""
    rows = [drawn((1, key), width=width, responses_per_key=2) for key in range(20_000)]
    for slot in (0, 1):
        counts = Counter(row[slot] for row in rows)
        assert stats.chisquare([counts[i] for i in range(width)]).pvalue > 1e-4
    pairs = Counter(rows)
    assert stats.chisquare([pairs[i, j] for i in range(width) for j in range(width) if i != j]).pvalue > 1e-4


def test_formats_and_secrets_draw_independently() -> None:
    for other in ({"name": "chat"}, {"secret": OTHER_SECRET}):
        pairs = Counter((*drawn((1, key), width=3), *drawn((1, key), width=3, **other)) for key in range(9_000))
        assert stats.chisquare([pairs[i, j] for i in range(3) for j in range(3)]).pvalue > 1e-4


def test_draws_are_distinct_and_a_full_draw_is_a_permutation() -> None:
    for key in range(200):
        assert sorted(drawn((1, key), width=16, responses_per_key=16)) == list(range(16))


def test_draws_depend_on_the_key_alone_not_on_order_or_company() -> None:
    keys = [(1, key) for key in range(50)]
    forwards = {key: drawn(key) for key in keys}
    backwards = {key: drawn(key) for key in reversed(keys)}
    assert forwards == backwards
    small, large = small_set(3), small_set(3, width=16)
    assert small == large


def test_key_ids_cannot_be_taken_for_others() -> None:
    keys = [(1, 2), (12,), (1, 2, 0), (0, 1, 2), (258,), (2, 1)]
    assert len({drawn(key, width=512, responses_per_key=4) for key in keys}) == len(keys)


def test_the_draw_is_the_published_one() -> None:
    """Written out again by hand: a change here makes every fingerprints file in use unverifiable."""
    settings = Settings(responses_per_key=3)
    key_ids = b"".join(number.to_bytes(8, "big") for number in (1, 2, 3))
    order = list(range(16))
    for slot in range(3):
        parts = [b"oml_fast", b"draw", b"base", b"tokenizer", settings.digest().encode(), b"chat", key_ids]
        message = b"".join(len(part).to_bytes(8, "big") + part for part in [*parts, str(slot).encode()])
        value = int.from_bytes(hmac.digest(SECRET, message, "sha256"), "big")
        chosen = slot + value * (16 - slot) // 2**256
        order[slot], order[chosen] = order[chosen], order[slot]
    assert drawn((1, 2, 3), name="chat", responses_per_key=3) == tuple(order[:3])
