"""A third party computes the verdict anew from the report alone, and any changed outcome changes what it finds."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sets import Scripted, carrier, inside, small_set

from oml_fast.completer import CHOOSE, SCORE
from oml_fast.errors import InvalidArgumentError
from oml_fast.verify import WithinMatch, verify
from oml_fast.verify.replay import replay
from oml_fast.verify.statistics import TESTS

ALL = frozenset({SCORE, CHOOSE})
MODES = ("sequential", "fixed")


def report(test: str, mode: str, kept: int = 20, **options: Any) -> dict[str, Any]:
    made = small_set(40, **{"width": 4, **options})
    silent = [f.askings["raw"].prompt_ids for f in made.fingerprints[3:5]]
    suspect = carrier(made, kept, capabilities=ALL, unanswered=silent)
    rng = np.random.default_rng(kept)
    for fingerprint in made.fingerprints[kept:]:
        for asking in fingerprint.askings.values():
            suspect.scores[asking.prompt_ids] = tuple(rng.integers(0, 3, 4).astype(float))  # type: ignore[index]
    found = verify(made, suspect, test=test, mode=mode, false_positive_rate=1e-4)
    return dict(json.loads(json.dumps(found.to_json(), allow_nan=False)))


def assert_equal(found: dict[str, Any], said: dict[str, Any]) -> None:
    path = found.pop("log10_e")
    assert path == [key["log10_e"] for key in said["keys"]]
    assert {name: said[name] for name in found} == json.loads(json.dumps(found))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("kept", [0, 5, 40])
def test_the_same_from_the_report_alone(test: str, mode: str, kept: int) -> None:
    said = report(test, mode, kept)
    assert_equal(replay(said), said)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("test", TESTS)
def test_several_responses_and_formats(test: str, mode: str) -> None:
    said = report(test, mode, 30, responses_per_key=2, formats=("raw", "chat"), response_length=2)
    assert_equal(replay(said), said)


def test_any_changed_place_changes_something() -> None:
    """Each response counts, not the best one alone: moving any to another group of its key is seen."""
    said = report("rank", "sequential", 4, responses_per_key=2)
    honest, moved = replay(said), 0
    for place, key in enumerate(said["keys"]):
        for number, trial in enumerate(key["trials"]):
            for others in ([0, 1], [0, 2], [1, 2]):
                if others == trial["places"] or max(others) >= len(trial["sizes"]):
                    continue
                changed = copy.deepcopy(said)
                changed["keys"][place]["trials"][number]["places"] = others
                assert replay(changed) != honest
                moved += 1
    assert moved > 3


@pytest.mark.parametrize("mode", MODES)
def test_a_rule_that_touches_several_candidates(mode: str) -> None:
    made = small_set(20, width=5)
    answers = {f.askings["raw"].prompt_ids: f.askings["raw"].window.token_ids[:3] for f in made}
    found = verify(made, Scripted(answers), rule=WithinMatch(3), mode=mode).to_json()
    assert {key["satisfied"]["raw"] for key in found["keys"]} == {3}
    assert_equal(replay(found), found)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("test", TESTS)
def test_any_changed_outcome_changes_something(test: str, mode: str) -> None:
    said = report(test, mode)
    honest = replay(said)
    for place, key in enumerate(said["keys"]):
        for field in ("matched", "answered"):
            changed = copy.deepcopy(said)
            changed["keys"][place][field] = not key[field]
            assert replay(changed) != honest
        for number, trial in enumerate(key["trials"]):
            changed = copy.deepcopy(said)
            if len(trial["probs"]) > 1:
                changed["keys"][place]["trials"][number]["outcome"] = (trial["outcome"] + 1) % len(trial["probs"])
                assert replay(changed) != honest
    for changed_keys in (said["keys"][:-1], [*said["keys"], said["keys"][0]]):
        assert replay({**said, "keys": changed_keys}) != honest


@pytest.mark.parametrize("place", [0, 1])
def test_keys_in_another_order_have_another_path(place: int) -> None:
    made = small_set(12, width=4)
    found = verify(made, inside(made, [f.askings["raw"].responses[0].index or 0 if n % 2 else -1
                                       for n, f in enumerate(made)])).to_json()  # fmt: skip
    keys = list(found["keys"])
    keys[place], keys[place + 1] = keys[place + 1], keys[place]
    assert replay({**found, "keys": keys})["log10_e"] != replay(found)["log10_e"]


def change(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda report: report.update(fields)


def of_first_trial(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda report: report["keys"][0]["trials"][0].update(fields)


@pytest.mark.parametrize(
    "damage",
    [
        change(keys=[]),
        change(keys=None),
        change(keys=[{}]),
        change(test="best"),
        change(mode="quick"),
        change(false_positive_rate=0),
        change(false_positive_rate="nan"),
        change(smallest_fsr=1.0),
        change(miss_rate=None),
        change(num_fingerprints="many"),
        lambda report: report.pop("mode"),
        lambda report: report["keys"][0].pop("trials"),
        lambda report: report["keys"][0].pop("answered"),
        of_first_trial(probs=[]),
        of_first_trial(probs=[0.5, 0.6]),
        of_first_trial(probs=[1.5, -0.5]),
        of_first_trial(probs=[0.0, 1.0]),
        of_first_trial(probs=[float("nan"), 0.5]),
        of_first_trial(probs="half"),
        of_first_trial(outcome=2),
        of_first_trial(outcome=-1),
        of_first_trial(outcome="x"),
    ],
)
def test_a_damaged_report_is_refused(damage: Callable[[dict[str, Any]], Any]) -> None:
    said = report("window", "sequential")
    damage(said)
    with pytest.raises(InvalidArgumentError) as caught:
        replay(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"sizes": []},
        {"sizes": [1, 1, 1]},
        {"sizes": [1, 1, 1, 1, 1]},
        {"sizes": [0, 1, 1, 2]},
        {"sizes": "ones"},
        {"places": []},
        {"places": [0]},
        {"places": [0, 0]},
        {"places": [1, 0]},
        {"places": [0, 4]},
        {"places": [-1, 0]},
        {"places": [0, 1, 2]},
        {"places": None},
        {"aloud": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["trials", "base"])
def test_damaged_ranks_are_refused(name: str, fields: dict[str, Any]) -> None:
    said = report("rank", "sequential", responses_per_key=2)
    said["keys"][0][name][0] |= {"sizes": [1, 1, 1, 1], "places": [0, 1]}
    replay(said)
    said["keys"][0][name][0] |= fields
    with pytest.raises(InvalidArgumentError):
        replay(said)


def test_ranks_of_several_responses_are_never_one_outcome() -> None:
    """An owner cannot leave the other responses out where that suits, nor put ranks into a test of matches."""
    said = report("rank", "sequential", responses_per_key=2)
    said["keys"][0]["trials"] = [{"probs": [0.5, 0.5], "outcome": 0, "aloud": True}]
    with pytest.raises(InvalidArgumentError):
        replay(said)
    said = report("window", "sequential", responses_per_key=2)
    said["keys"][0]["trials"] = [{"sizes": [1, 1, 2], "places": [0, 1], "aloud": True}]
    with pytest.raises(InvalidArgumentError):
        replay(said)
