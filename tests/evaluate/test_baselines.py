"""Other responses to the same keys: their windows differ, their draws are the set's own, and they can be embedded."""

from __future__ import annotations

from pathlib import Path

import pytest
from sets import OTHER_SECRET

from oml_fast.embed import Recipe, embed
from oml_fast.errors import FingerprintFormatError, InvalidArgumentError
from oml_fast.evaluate.attack import Scene
from oml_fast.evaluate.baselines import STRATEGIES, with_responses
from oml_fast.fingerprint import FingerprintSet
from oml_fast.generate.vocabulary import Vocabulary
from oml_fast.models import HfCompleter, load
from oml_fast.verify import verify

SECRET = bytes(range(32))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_only_the_windows_differ(strategy: str, scene: Scene, tmp_path: Path) -> None:
    made = with_responses(scene.base, scene.fingerprints, SECRET, strategy)
    assert made == with_responses(scene.base, scene.fingerprints, SECRET, strategy)
    assert [f.key_ids for f in made] == [f.key_ids for f in scene.fingerprints]
    made.check_draws(SECRET)
    made.save(tmp_path / "set.json")
    assert FingerprintSet.load(tmp_path / "set.json") == made
    admissible = Vocabulary(scene.base.tokenizer, scene.base.vocabulary, scene.base.device).admissible
    for new, old in zip(made, scene.fingerprints, strict=True):
        window = new.askings["raw"].window
        assert len(set(window.token_ids)) == 16
        assert admissible[list(window.token_ids)].all()
        assert list(window.probs) == sorted(window.probs, reverse=True)
        assert set(window.token_ids) != set(old.askings["raw"].window.token_ids)


def test_random_words_are_drawn_without_a_look_at_the_model(scene: Scene) -> None:
    """So they lie on both sides of the perinucleus window: inside the nucleus, and far below the window."""
    made = with_responses(scene.base, scene.fingerprints, SECRET, "random-word")
    above = below = 0
    for new, old in zip(made, scene.fingerprints, strict=True):
        near = old.askings["raw"].window.probs
        above += sum(p > near[0] for p in new.askings["raw"].window.probs)
        below += sum(p < near[-1] for p in new.askings["raw"].window.probs)
    assert above > 0
    assert below > len(made) * 16 / 4


def test_they_can_be_embedded_and_verified(scene: Scene, tiny_folder: Path) -> None:
    model = load(tiny_folder, device="cpu")
    made = with_responses(model, scene.fingerprints, SECRET, "english-random")
    embed(model, made, recipe=Recipe(learning_rate=5e-3, pull=0.5, stop_kl=5.0, stop_loss=0.3))
    assert verify(made, HfCompleter(model)).verdict == "match"


def test_bad_arguments_are_refused(scene: Scene) -> None:
    with pytest.raises(InvalidArgumentError, match="random-word or english-random"):
        with_responses(scene.base, scene.fingerprints, SECRET, "emoji")
    with pytest.raises(FingerprintFormatError, match="secret"):
        with_responses(scene.base, scene.fingerprints, OTHER_SECRET, "random-word")
