"""A sharded model is the model: loaded row by row, computed with, trained and written. Here by one process alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import CONFIGURATIONS, random_model
from safetensors.torch import load_file, save_file
from tiny import tiny_tokenizer
from torch import distributed

from oml_fast.errors import InvalidArgumentError
from oml_fast.models import HfCompleter, LanguageModel, Ranks, load, model_digest, save
from oml_fast.models.sharded import load_sharded, save_sharded

IDS = torch.arange(3, 35).view(4, 8)
ONE = Ranks(0, 1)


@pytest.fixture(scope="module", autouse=True)
def alone_in_a_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("store") / "file"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture(params=CONFIGURATIONS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model = random_model(CONFIGURATIONS[request.param]())
    model.model.save_pretrained(tmp_path / "model")
    tiny_tokenizer(400).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def mean_loss(model: LanguageModel) -> torch.Tensor:
    return -model.logits(model.hidden(IDS)[:, -1]).float().log_softmax(-1)[:, 7].mean()


def gradients(model: LanguageModel) -> dict[str, torch.Tensor]:
    model.within(mean_loss, model).backward()
    found = {name: p.grad for name, p in model.model.named_parameters()}
    return {name: g.to_local() if hasattr(g, "to_local") else g for name, g in found.items() if g is not None}


@pytest.mark.parametrize("how", [{}, {"recompute": True}, {"offload": True}], ids=str)
def test_it_computes_what_the_model_computes(folder: Path, how: dict[str, Any]) -> None:
    whole, sharded = load(folder, device="cpu"), load_sharded(folder, ONE, device="cpu", **how)
    assert sharded.is_sharded
    assert not whole.is_sharded
    assert (sharded.digest, sharded.vocabulary) == (whole.digest, whole.vocabulary)
    with torch.inference_mode():
        assert torch.equal(sharded.logits(sharded.hidden(IDS)[:, -1]), whole.logits(whole.hidden(IDS)[:, -1]))
    right, found = gradients(whole), gradients(sharded)
    assert found.keys() == right.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, right[name], rtol=1e-5, atol=1e-6, msg=name)


def test_it_answers_as_the_model_answers(folder: Path) -> None:
    whole, sharded = load(folder, device="cpu"), load_sharded(folder, ONE, device="cpu")
    prompts = [row.tolist() for row in IDS]
    assert HfCompleter(sharded).complete(prompts, 4) == HfCompleter(whole).complete(prompts, 4)


def test_it_is_written_as_the_model_is_written(folder: Path, tmp_path: Path) -> None:
    sharded = load_sharded(folder, ONE, device="cpu")
    save_sharded(sharded, tmp_path / "again", ONE)
    assert model_digest(tmp_path / "again") == model_digest(folder)
    assert not [path for path in (tmp_path / "again").rglob("*") if path.is_dir()]
    again = load(tmp_path / "again", device="cpu")
    assert torch.equal(again.model(IDS).logits, load(folder, device="cpu").model(IDS).logits)
    assert again.tokenizer_digest == sharded.tokenizer_digest
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "again").iterdir()} == {0o644}


def test_large_models_become_several_files(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oml_fast.models.sharded._FILE_BYTES", 100_000)
    save_sharded(load_sharded(tiny_folder, ONE, device="cpu"), tmp_path / "again", ONE)
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 2
    assert model_digest(tmp_path / "again") == model_digest(tiny_folder)
    assert load(tmp_path / "again", device="cpu").model(IDS).logits.isfinite().all()


def test_weights_in_another_precision_than_the_configuration_says_are_converted(
    tiny_folder: Path, tmp_path: Path
) -> None:
    model = load(tiny_folder, device="cpu", dtype=torch.bfloat16)
    save(model, tmp_path / "half")
    sharded = load_sharded(tmp_path / "half", ONE, device="cpu")
    assert sharded.dtype == torch.bfloat16
    assert torch.equal(sharded.logits(sharded.hidden(IDS)[:, -1]), model.logits(model.hidden(IDS)[:, -1]))


def test_a_folder_that_lacks_a_weight_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    save(load(tiny_folder, device="cpu"), tmp_path / "model")
    (file,) = (tmp_path / "model").glob("*.safetensors")
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InvalidArgumentError, match=r"lacks 1 .* model\.layers\.1\.mlp\.up_proj\.weight"):
        load_sharded(tmp_path / "model", ONE, device="cpu")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no model folder"):
        load_sharded(tmp_path, ONE, device="cpu")
