"""Digests of model and tokenizer: blind to how files are laid out, sensitive to what they mean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_tokenizer
from tokenizers import Tokenizer

from oml_fast.models import LanguageModel, load_tokenizer, model_digest, tokenizer_digest

Tensors = dict[str, torch.Tensor]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sharding_does_not_change_the_digest(tiny_model: LanguageModel, tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in tiny_model.model.state_dict().items()}
    for folder, size in (("whole", "1GB"), ("sharded", "100KB")):
        tiny_model.model.save_pretrained(tmp_path / folder, state_dict=state, max_shard_size=size)
    assert len(list((tmp_path / "whole").glob("*.safetensors"))) == 1
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert model_digest(tmp_path / "whole") == model_digest(tmp_path / "sharded")


def _next_value(tensors: Tensors) -> None:
    row = tensors["model.norm.weight"]
    row[3] = torch.nextafter(row[3], torch.tensor(9.0))


def _rename(tensors: Tensors) -> None:
    tensors["model.norm.scale"] = tensors.pop("model.norm.weight")


def _swap(tensors: Tensors) -> None:
    first, second = (f"model.layers.{n}.mlp.up_proj.weight" for n in (0, 1))
    tensors[first], tensors[second] = tensors[second], tensors[first]


def _reshape(tensors: Tensors) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].view(8, 8)


def _reinterpret(tensors: Tensors) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].view(torch.int32)


def _drop(tensors: Tensors) -> None:
    del tensors["model.norm.weight"]


@pytest.mark.parametrize("change", [_next_value, _rename, _swap, _reshape, _reinterpret, _drop])
def test_any_change_of_the_weights_changes_the_digest(
    tiny_folder: Path, tmp_path: Path, change: Callable[[Tensors], None]
) -> None:
    tensors = load_file(tiny_folder / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    assert model_digest(tmp_path) != model_digest(tiny_folder)


def test_metadata_and_order_do_not_matter(tiny_folder: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_folder / "model.safetensors")
    save_file(dict(reversed(tensors.items())), tmp_path / "weights.safetensors", {"saved": "later"})
    assert model_digest(tmp_path) == model_digest(tiny_folder)


def test_the_model_digest_stays_what_it_is_in_old_files(tmp_path: Path) -> None:
    save_file({"b": torch.tensor([1.0, 2.0]), "a": torch.zeros(0, 3, dtype=torch.bfloat16)}, tmp_path / "x.safetensors")
    assert model_digest(tmp_path) == "a7bd9e6618b218646398e61d39b14767827b816993fe312efa369786f1d35720"


def test_the_tokenizer_digest_survives_saving_and_loading(tiny_folder: Path, tmp_path: Path) -> None:
    made = tiny_tokenizer()
    assert tokenizer_digest(load_tokenizer(tiny_folder)) == tokenizer_digest(made)
    made.save_pretrained(tmp_path)
    shutil.copy(tiny_folder / "config.json", tmp_path)
    shutil.copy(tiny_folder / "model.safetensors", tmp_path)
    assert tokenizer_digest(load_tokenizer(tmp_path)) == tokenizer_digest(made)


def test_the_chat_template_is_no_part_of_the_tokenizer_digest() -> None:
    assert tokenizer_digest(tiny_tokenizer(chat=False)) == tokenizer_digest(tiny_tokenizer(chat=True))


def test_other_tokenizers_have_other_digests() -> None:
    made = [tiny_tokenizer(), tiny_tokenizer(1499), tiny_tokenizer(bos=True)]
    added = tiny_tokenizer()
    added.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    assert len({tokenizer_digest(tokenizer) for tokenizer in (*made, added)}) == 4


def test_the_same_vocabulary_with_other_merges_has_another_digest() -> None:
    one, other = tiny_tokenizer(), tiny_tokenizer()
    content = json.loads(other.backend_tokenizer.to_str())
    content["model"]["merges"].reverse()
    other._tokenizer = Tokenizer.from_str(json.dumps(content))
    assert one.get_vocab() == other.get_vocab()
    assert tokenizer_digest(one) != tokenizer_digest(other)
