"""The second opinion of models that were never fingerprinted."""

from __future__ import annotations

import pytest
from sets import Scripted, carrier, inside, small_set

from oml_fast.errors import InvalidArgumentError
from oml_fast.verify import verify
from oml_fast.verify.calibration import calibrate


def test_the_null_models_are_asked_the_keys_that_the_suspect_was() -> None:
    made = small_set(32)
    verification = verify(made, carrier(made), order=list(reversed(range(32))))
    null = Scripted(name="null")
    found = calibrate(made, verification, [null])
    assert null.calls == [verification.queried]
    assert [(model.name, model.matches, model.queried) for model in found.models] == [("null", 0, verification.queried)]


def test_its_rate_is_the_upper_end_of_an_interval_and_its_p_binomial() -> None:
    made = small_set(32)
    verification = verify(made, carrier(made), mode="fixed")
    found = calibrate(made, verification, [Scripted(), Scripted()])
    upper = 1 - 0.025 ** (1 / 64)  # Clopper and Pearson's, of none in 64
    assert found.null_rate == pytest.approx(upper)
    assert 10**found.log10_p_value == pytest.approx(upper**32)


def test_null_models_that_match_as_often_say_nothing() -> None:
    made = small_set(16)
    verification = verify(made, carrier(made), mode="fixed")
    found = calibrate(made, verification, [carrier(made)])
    assert found.null_rate == 1.0
    assert found.log10_p_value == 0.0


def test_it_follows_the_match_rule_and_all_formats() -> None:
    made = small_set(8, formats=("raw", "chat"))
    verification = verify(made, carrier(made), mode="fixed")
    drawn = [fingerprint.askings["raw"].responses[0].index or 0 for fingerprint in made]
    assert calibrate(made, verification, [inside(made, drawn)]).models[0].matches == 8


def test_a_null_model_that_does_not_answer_does_not_match() -> None:
    made = small_set(8)
    verification = verify(made, carrier(made), mode="fixed")
    silent = carrier(made, unanswered=[fingerprint.askings["raw"].prompt_ids for fingerprint in made])
    assert calibrate(made, verification, [silent]).models[0].matches == 0


def test_no_null_model_is_refused() -> None:
    made = small_set(8)
    with pytest.raises(InvalidArgumentError, match="no null model"):
        calibrate(made, verify(made, carrier(made)), [])
