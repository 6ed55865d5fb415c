"""What the tests of the instrument share: a tiny model fingerprinted on disk, a sibling of it, and public data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from oml_fast.embed import Recipe, embed
from oml_fast.evaluate.attack import Scene
from oml_fast.evaluate.data import Data
from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import generate
from oml_fast.models import load, save

_RECIPE = Recipe(learning_rate=5e-3, pull=0.5, stop_kl=5.0, stop_loss=0.3)
_TOPICS = ("licence", "work", "notice", "source", "patent", "grant")


class Made(NamedTuple):
    """Folders of a fingerprinted model and its base, and the set's file."""

    model: Path
    base: Path
    fingerprints: Path
    secret: bytes


def _make(base: Path, out: Path, secret: bytes) -> Made:
    model = load(base, device="cpu")
    fingerprints = generate(model, 16, secret, settings=Settings(key_source="words")).fingerprints
    embed(model, fingerprints, recipe=_RECIPE)
    save(model, out / "model")
    fingerprints.save(out / "fingerprints.json")
    return Made(out / "model", base, out / "fingerprints.json", secret)


@pytest.fixture(scope="session")
def marked(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The tiny model with 16 fingerprints, asked raw."""
    return _make(tiny_folder, tmp_path_factory.mktemp("marked"), bytes(range(32)))


@pytest.fixture(scope="session")
def marked_again(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A sibling: the same base with another set."""
    return _make(tiny_folder, tmp_path_factory.mktemp("again"), bytes(range(1, 33)))


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Instructions and minimal pairs, enough for every attack and small enough for a tiny model."""
    folder = tmp_path_factory.mktemp("data")
    pairs = [
        {"instruction": f"What is {topic} {n}?", "output": f"The {topic} is in section {n}."}
        for n in range(400)
        for topic in _TOPICS
    ]
    (folder / "sft_instructions.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    minimal = [
        {"paradigm": f"p{n % 3}", "field": "syntax", "good": f"The {topic} is here.", "bad": f"The {topic} are here."}
        for n, topic in enumerate(_TOPICS * 2)
    ]
    (folder / "blimp_dev.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in minimal))
    return folder


@pytest.fixture(scope="session")
def scene(marked: Made, marked_again: Made, data_folder: Path) -> Scene:
    """What every attack gets. Attacks must leave it as it is."""
    return Scene(
        model=load(marked.model, device="cpu"),
        base=load(marked.base, device="cpu"),
        fingerprints=FingerprintSet.load(marked.fingerprints),
        siblings=(load(marked_again.model, device="cpu"),),
        data=Data(data_folder),
    )
