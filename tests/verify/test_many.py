"""Many suspects and many sets: Holm decides, names are told apart, and nothing is asked of nobody."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sets import OTHER_SECRET, Scripted, carrier, small_set

from oml_fast.errors import InvalidArgumentError
from oml_fast.verify import verify_many

OWN = {"alice": small_set(32, seed=1), "bob": small_set(32, seed=2), "carol": small_set(32, seed=3)}


def test_the_set_that_is_in_a_suspect_is_named() -> None:
    found = verify_many({"leak": lambda: carrier(OWN["bob"])}, OWN)
    assert found.matches("leak") == ["bob"]
    assert [pair.verdict for pair in found.pairs] == ["no_match", "match", "no_match"]
    assert "bob" in found.reason("leak")
    assert "one in 10^6" in found.reason("leak")


def test_each_pair_pays_for_all_of_them() -> None:
    found = verify_many({"leak": lambda: carrier(OWN["bob"])}, OWN, false_positive_rate=1e-6)
    assert {pair.verification.false_positive_rate for pair in found.pairs} == {1e-6 / 3}
    bob = next(pair for pair in found.pairs if pair.set_name == "bob")
    assert bob.log10_adjusted_p == pytest.approx(bob.verification.log10_p_value + math.log10(3))
    assert bob.log10_adjusted_p <= -6
    assert bob.discovered
    assert not any(pair.discovered for pair in found.pairs if pair.set_name != "bob")


def test_many_suspects_are_loaded_one_after_the_other() -> None:
    loaded: list[str] = []

    def suspect(name: str, scripted: Scripted) -> Scripted:
        loaded.append(name)
        return scripted

    suspects = {
        "guilty": lambda: suspect("guilty", carrier(OWN["alice"])),
        "innocent": lambda: suspect("innocent", Scripted()),
    }
    found = verify_many(suspects, {"alice": OWN["alice"]})
    assert loaded == ["guilty", "innocent"]
    assert (found.matches("guilty"), found.matches("innocent")) == (["alice"], [])
    assert found.reason("innocent").startswith("No set of 1 matches")
    told = found.to_json()
    assert told["suspects"]["guilty"]["matches"] == ["alice"]
    assert len(told["pairs"]) == 2


def test_a_merged_copy_carries_two_sets() -> None:
    both = Scripted({**carrier(OWN["alice"]).answers, **carrier(OWN["carol"]).answers})
    found = verify_many({"merged": lambda: both}, OWN)
    assert sorted(found.matches("merged")) == ["alice", "carol"]
    assert "More than one set matches" in found.reason("merged")


def test_another_draw_over_the_same_windows_is_another_set() -> None:
    others = {"ours": small_set(32, seed=1), "theirs": small_set(32, seed=1, secret=OTHER_SECRET)}
    assert verify_many({"leak": lambda: carrier(others["theirs"])}, others).matches("leak") == ["theirs"]


def test_a_fixed_number_of_keys_has_no_e_value_to_discover_with() -> None:
    found = verify_many({"leak": lambda: carrier(OWN["bob"])}, OWN, mode="fixed")
    assert found.matches("leak") == ["bob"]
    assert not any(pair.discovered for pair in found.pairs)


def test_innocents_are_convicted_no_more_often_than_once_in_a_rate_over_all_pairs() -> None:
    """200 families of 5 sets, fresh secrets, a suspect that always answers inside every window."""
    rng, rate, families, convicted = np.random.default_rng(0), 0.1, 200, 0
    for family in range(families):
        sets = {
            str(i): small_set(12, seed=i, secret=(1000 * family + i).to_bytes(32, "big"), width=4, key_length=2)
            for i in range(5)
        }
        answers = {}
        for made in sets.values():
            for fingerprint in made:
                window = fingerprint.askings["raw"].window.token_ids
                answers[fingerprint.askings["raw"].prompt_ids] = (window[int(rng.integers(4))],)
        found = verify_many({"innocent": lambda answers=answers: Scripted(answers)}, sets, false_positive_rate=rate)
        convicted += bool(found.matches("innocent"))
    assert convicted <= families * rate + 4 * math.sqrt(families * rate * (1 - rate))


def test_nothing_to_ask_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="name at least one of each"):
        verify_many({}, OWN)
    with pytest.raises(InvalidArgumentError, match="name at least one of each"):
        verify_many({"leak": Scripted}, {})


def test_the_same_set_twice_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="two of the sets are the same"):
        verify_many({"leak": Scripted}, {"a": OWN["alice"], "b": small_set(32, seed=1)})


def test_what_verify_refuses_is_refused_here_too() -> None:
    with pytest.raises(InvalidArgumentError, match="cannot ask 33 keys"):
        verify_many({"leak": Scripted}, OWN, num_keys=33)
