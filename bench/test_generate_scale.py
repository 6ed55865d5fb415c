"""The measurement at scale on a tiny model: it goes on, counts what is wrong with a set, and says what must be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import generate_scale
import pytest
from generate_scale import CHUNK, Checked, check, figures, measure
from tiny import write_tiny_model

from oml_fast.fingerprint import Fingerprint, FingerprintSet, Settings
from oml_fast.generate import Generation
from oml_fast.generate.askings import Responder
from oml_fast.models import LanguageModel, load

NUM = CHUNK + 44


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load(write_tiny_model(tmp_path_factory.mktemp("tiny")), device="cpu")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def made(tiny: LanguageModel, work: Path) -> tuple[Generation, Checked]:
    return measure(tiny, work, NUM, Settings(width=4))


def test_a_good_set_has_nothing_wrong(made: tuple[Generation, Checked], work: Path) -> None:
    generation, checked = made
    assert checked == Checked(0, 0, 4 * NUM, 0)
    assert FingerprintSet.load(work / "fingerprints.json") == generation.fingerprints


def test_it_goes_on(
    tiny: LanguageModel, made: tuple[Generation, Checked], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("a unit was made again")

    monkeypatch.setattr(Responder, "respond", forbidden)
    again, checked = measure(tiny, work, NUM, Settings(width=4))
    assert (again.fingerprints, checked) == (made[0].fingerprints, made[1])
    assert again.seconds == made[0].seconds


def another_key(fingerprint: Fingerprint) -> Fingerprint:
    return replace(fingerprint, key=fingerprint.key + " x")


def another_candidate(fingerprint: Fingerprint) -> Fingerprint:
    window = fingerprint.askings["raw"].window
    asking = replace(fingerprint.askings["raw"], window=replace(window, texts=(*window.texts[:3], "\x01")))
    return replace(fingerprint, askings={"raw": asking})


@pytest.mark.parametrize(
    ("change", "counted"),
    [(another_key, Checked(0, 1, 4 * NUM, 4)), (another_candidate, Checked(0, 0, 4 * NUM, 1))],
)
@pytest.mark.parametrize("place", [0, CHUNK, NUM - 1])
def test_what_is_wrong_is_counted(
    tiny: LanguageModel,
    made: tuple[Generation, Checked],
    change: Callable[[Fingerprint], Fingerprint],
    counted: Checked,
    place: int,
) -> None:
    every = list(made[0].fingerprints)
    every[place] = change(every[place])
    assert check(tiny, replace(made[0].fingerprints, fingerprints=tuple(every))) == counted


def test_a_key_that_stands_there_twice_is_counted(tiny: LanguageModel, made: tuple[Generation, Checked]) -> None:
    every = made[0].fingerprints.fingerprints
    twice = replace(made[0].fingerprints, fingerprints=(*every[:-2], every[0], every[1]))
    assert check(tiny, twice).duplicate_keys == 2


def test_the_figures_have_the_bars_of_the_project(made: tuple[Generation, Checked]) -> None:
    rows = {row.figure: row for row in figures(made[0].to_json(), made[1], 2 << 30)}
    bars = {name: (row.value, row.bar, row.met) for name, row in rows.items() if row.bar}
    assert bars == {
        "generate at scale, duplicate keys": ("0", "<= 0", True),
        "generate at scale, round-trip failures": ("0", "<= 0", True),
        "generate at scale, peak memory": ("2.00 GiB", "<= 3 GiB", True),
    }
    worse = figures(made[0].to_json(), Checked(1, 0, 5, 1), 4 << 30)
    assert [row.met for row in worse if row.bar] == [False] * 3
    assert generate_scale.NUM == 24_576
    assert not any(name in json.dumps([row.value for row in worse]) for name in ("nan", "None"))
