"""What was killed goes on with the same bits; what is damaged or of another training is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from oml_fast.embed import Recipe, embed
from oml_fast.embed.checkpoint import Checkpoints
from oml_fast.embed.optimizer import AnchoredAdamW
from oml_fast.errors import InvalidArgumentError
from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import generate
from oml_fast.models import ALONE, LanguageModel, load

# Four steps an epoch, with everything that is drawn: views, templates, near keys, text.
RECIPE = Recipe(
    learning_rate=5e-3,
    near_keys=1,
    templates=0.5,
    scaled=0.3,
    rounded=0.2,
    tuned=0.2,
    whitening=0.1,
    batch_size=8,
    max_epochs=3,
    stop_kl=1e-9,
)


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def made(tiny_model: LanguageModel) -> FingerprintSet:
    return generate(tiny_model, 32, bytes(range(32)), settings=Settings(key_source="words")).fingerprints


def weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.model.named_parameters()}


def killed_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The process ends in the middle of the step after so many; what it returns lets the next one live."""
    step = AnchoredAdamW.step

    def watched(self: AnchoredAdamW) -> None:
        if self.steps == steps:
            raise KilledError
        step(self)

    monkeypatch.setattr(AnchoredAdamW, "step", watched)
    return lambda: monkeypatch.setattr(AnchoredAdamW, "step", step)


@pytest.mark.parametrize(("every", "steps"), [(1, 1), (1, 6), (1, 8), (3, 11), (5, 11)])
def test_a_killed_training_ends_in_the_same_bits(
    tiny_folder: Path, made: FingerprintSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, steps: int
) -> None:
    how: dict[str, Any] = {"recipe": RECIPE, "checkpoint_every": every}
    whole = load(tiny_folder, device="cpu")
    undisturbed = embed(whole, made, **how)
    live = killed_after(steps, monkeypatch)
    with pytest.raises(KilledError):
        embed(load(tiny_folder, device="cpu"), made, checkpoints=tmp_path, **how)
    assert [folder.name for folder in tmp_path.iterdir()] == [f"step-{steps // every * every}"]
    live()
    model = load(tiny_folder, device="cpu")
    taken: list[int] = []
    step = AnchoredAdamW.step
    monkeypatch.setattr(AnchoredAdamW, "step", lambda self: (taken.append(self.steps), step(self))[1])
    resumed = embed(model, made, checkpoints=tmp_path, **how)
    assert taken == list(range(steps // every * every, 12))
    for name, tensor in weights(model).items():
        assert torch.equal(tensor, weights(whole)[name]), name
    assert (resumed.steps, resumed.epochs) == (undisturbed.steps, undisturbed.epochs) == (12, 3)
    assert resumed.to_json()["budget"] == undisturbed.to_json()["budget"]
    assert resumed.train_tokens == undisturbed.train_tokens


def test_seconds_are_those_of_all_runs(fresh_model: LanguageModel, made: FingerprintSet, stopped: Path) -> None:
    state = json.loads((stopped / "step-2" / "0.json").read_text())
    assert 0 < state["progress"]["spent"][1] < 1000
    state["progress"]["spent"] = [5000.0, 7000.0]
    (stopped / "step-2" / "0.json").write_text(json.dumps(state))
    result = embed(fresh_model, made, recipe=RECIPE, checkpoints=stopped, checkpoint_every=1)
    assert 5000 < result.seconds < 6000
    assert 7000 < result.cpu_seconds < 8000


@pytest.fixture
def stopped(tiny_folder: Path, made: FingerprintSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of checkpoints of a training that was killed after its second step."""
    live = killed_after(2, monkeypatch)
    with pytest.raises(KilledError):
        embed(load(tiny_folder, device="cpu"), made, recipe=RECIPE, checkpoints=tmp_path / "kept", checkpoint_every=1)
    live()
    return tmp_path / "kept"


def test_a_state_that_was_not_finished_is_not_there(
    fresh_model: LanguageModel, made: FingerprintSet, stopped: Path
) -> None:
    """A kill while it is written leaves the one before: it becomes one by a rename."""
    partial = stopped / ".step-3"
    partial.mkdir()
    (partial / "0.safetensors").write_bytes(b"cut")
    assert embed(fresh_model, made, recipe=RECIPE, checkpoints=stopped, checkpoint_every=4).steps == 12
    assert sorted(folder.name for folder in stopped.iterdir()) == [".step-3", "step-12"]


@pytest.mark.parametrize(
    "break_it",
    [
        lambda folder: (folder / "0.safetensors").write_bytes((folder / "0.safetensors").read_bytes()[:-100]),
        lambda folder: (folder / "0.safetensors").write_bytes(b""),
        lambda folder: (folder / "0.safetensors").unlink(),
        lambda folder: (folder / "0.json").write_text((folder / "0.json").read_text()[:-20]),
        lambda folder: (folder / "0.json").write_text("{}"),
        lambda folder: (folder / "0.json").unlink(),
    ],
    ids=["cut short", "empty", "no tensors", "state cut short", "state empty", "no state"],
)
def test_a_damaged_checkpoint_is_named(
    fresh_model: LanguageModel, made: FingerprintSet, stopped: Path, break_it: Callable[[Path], None]
) -> None:
    break_it(stopped / "step-2")
    with pytest.raises(InvalidArgumentError, match="step-2"):
        embed(fresh_model, made, recipe=RECIPE, checkpoints=stopped, checkpoint_every=1)
    assert (stopped / "step-2").is_dir()


@pytest.mark.parametrize("changed", [{"pull": 0.5}, {"seed": 1}, {"max_epochs": 4}], ids=str)
def test_of_another_recipe_it_is_refused(
    fresh_model: LanguageModel, made: FingerprintSet, stopped: Path, changed: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgumentError, match=r"another recipe.*remove"):
        embed(fresh_model, made, recipe=replace(RECIPE, **changed), checkpoints=stopped, checkpoint_every=1)


def test_of_another_set_it_is_refused(fresh_model: LanguageModel, made: FingerprintSet, stopped: Path) -> None:
    other = generate(fresh_model, 32, bytes(range(1, 33)), settings=Settings(key_source="words")).fingerprints
    with pytest.raises(InvalidArgumentError, match="another set"):
        embed(fresh_model, other, recipe=RECIPE, checkpoints=stopped, checkpoint_every=1)


def test_of_other_tensors_it_is_refused(fresh_model: LanguageModel, made: FingerprintSet, stopped: Path) -> None:
    """Were the digests to agree all the same."""
    state = json.loads((stopped / "step-2" / "0.json").read_text())
    changed = replace(RECIPE, write_to="mlp_down").for_hidden_size(64)
    state["of"]["recipe"] = asdict(changed)
    (stopped / "step-2" / "0.json").write_text(json.dumps(state))
    with pytest.raises(InvalidArgumentError, match="damaged"):
        embed(fresh_model, made, recipe=changed, checkpoints=stopped, checkpoint_every=1)


def test_it_holds_no_key_and_no_response(made: FingerprintSet, stopped: Path) -> None:
    text = (stopped / "step-2" / "0.json").read_text()
    assert not [f.key for f in made if f.key in text]


def test_a_frequency_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        Checkpoints(tmp_path, 0, {}, ALONE)
