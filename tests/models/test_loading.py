"""Loading: what is refused, each time with one line that names the folder and the way out; and what is saved."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import write_tiny_model

from oml_fast.errors import InvalidArgumentError, OmlError
from oml_fast.models import (
    LanguageModel,
    load,
    load_tokenizer,
    model_digest,
    model_shape,
    require_model_folder,
    resolve_device,
    save,
    weight_bytes,
    weight_shapes,
)

REMOTE_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({witness!r}).write_text("ran")
class OwnConfig(LlamaConfig):
    model_type = "own"
class Own(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def refusal(folder: Path, function: Callable[..., Any] = load) -> str:
    """The message with which `function` refuses the folder; it is one line that names the folder."""
    with pytest.raises(InvalidArgumentError) as refused:
        function(folder)
    message = str(refused.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def configure(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_keep_their_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    model = load(write_tiny_model(tmp_path / "model", dtype=dtype), device="cpu")
    assert model.dtype == dtype
    assert {p.dtype for p in model.model.parameters()} == {dtype}


def test_another_dtype_can_be_asked_for(tiny_folder: Path) -> None:
    assert load(tiny_folder, dtype=torch.bfloat16, device="cpu").dtype == torch.bfloat16


def test_a_model_is_loaded_with_its_name_and_digests(tiny_model: LanguageModel, tiny_folder: Path) -> None:
    assert not tiny_model.model.training
    assert tiny_model.name == str(tiny_folder)
    assert tiny_model.digest == model_digest(tiny_folder)
    assert tiny_model.vocabulary == len(tiny_model.tokenizer) == 1500


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    assert "no model folder (it has no config.json)" in refusal(tmp_path / "nowhere")


def test_a_file_is_no_model(folder: Path) -> None:
    assert "written by save_pretrained" in refusal(folder / "config.json")


def test_a_folder_without_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder)


class _Payload:
    """Unpickling it writes a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.witness,)


def test_pickle_weights_are_refused_and_never_opened(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Payload(tmp_path / "witness")))
    message = refusal(folder)
    assert "only pickle weights (pytorch_model.bin), which can run code" in message
    assert message.endswith("Convert the weights.")
    assert not (tmp_path / "witness").exists()


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "holds no weights" in refusal(folder)


def test_an_unknown_architecture(folder: Path) -> None:
    configure(folder, model_type="martian")
    message = refusal(folder)
    assert "martian" in message
    assert message.endswith("name another model.")


@pytest.mark.parametrize("kind", ["t5", "vit"])
def test_an_architecture_that_is_no_causal_language_model(folder: Path, kind: str) -> None:
    configure(folder, model_type=kind)
    assert "cannot be loaded as a causal language model" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe\x00"])
def test_a_damaged_configuration(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    refusal(folder)
    refusal(folder, model_shape)


@pytest.mark.parametrize("size", [0, 4, 100, 5000, -1])
def test_weights_cut_short(folder: Path, size: int) -> None:
    cut(folder / "model.safetensors", size)
    assert "save or download it again" in refusal(folder)
    assert "save or download it again" in refusal(folder, weight_shapes)


def test_a_shard_that_is_missing(tiny_model: LanguageModel, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    tiny_model.model.save_pretrained(folder, max_shard_size="100KB")
    sorted(folder.glob("*.safetensors"))[1].unlink()
    assert "model-00002-of-" in refusal(folder)


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.pop("model.norm.weight"))
    assert "lacks 1 of its weights, model.norm.weight among them" in refusal(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}))
    refusal(folder)


def test_weights_that_are_not_finite(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors["model.norm.weight"].fill_(torch.nan))
    assert "not finite" in refusal(folder)


def test_a_folder_without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    for function in (load, load_tokenizer):
        message = refusal(folder, function)
        assert "holds no tokenizer that can be loaded" in message
        assert message.endswith("save one there with save_pretrained.")


@pytest.mark.parametrize("content", ["", '{"version"', "{}", "[]"])
def test_a_damaged_tokenizer(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    assert "save_pretrained" in refusal(folder)


def bring_code(folder: Path, witness: Path) -> None:
    (folder / "own.py").write_text(REMOTE_CODE.format(witness=str(witness)))
    configure(folder, model_type="own", auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"})


def test_python_code_in_the_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    bring_code(folder, tmp_path / "witness")
    assert "custom code" in refusal(folder)
    refusal(folder, model_shape)
    assert not (tmp_path / "witness").exists()


def test_python_code_in_the_folder_is_run_when_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    bring_code(folder, tmp_path / "witness")
    load(folder, device="cpu", trust_remote_code=True)
    assert (tmp_path / "witness").exists()


def test_python_code_of_a_tokenizer_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "own.py").write_text(f"open({str(tmp_path / 'witness')!r}, 'w')")
    path = folder / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": [None, "own.Own"]}, "tokenizer_class": "Own"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    refusal(folder)
    assert not (tmp_path / "witness").exists()


def test_an_unknown_device() -> None:
    with pytest.raises(InvalidArgumentError, match="'tpu' is unknown: use auto, cpu, cuda"):
        resolve_device("tpu")


def test_a_device_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidArgumentError, match="'cuda:1' is not available here: use --device cpu"):
        resolve_device("cuda:1")
    assert resolve_device("auto") == "cpu"


def test_saved_models_load_elsewhere_and_keep_their_digests(tiny_model: LanguageModel, tmp_path: Path) -> None:
    save(tiny_model, tmp_path)
    again = load(tmp_path, device="cpu")
    assert (again.digest, again.tokenizer_digest) == (tiny_model.digest, tiny_model.tokenizer_digest)
    assert again.tokenizer.chat_template == tiny_model.tokenizer.chat_template
    ids = torch.tensor([[5, 6, 7]])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits
    # The implementation of attention may differ, and with it the rounding.
    torch.testing.assert_close(theirs, tiny_model.model(ids).logits, rtol=1e-4, atol=1e-4)
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in tmp_path.iterdir())


def test_saving_where_nothing_can_be_written(
    tiny_model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tiny_model.tokenizer, "save_pretrained", full)
    with pytest.raises(OmlError, match=r"cannot write the model: .*No space left on device"):
        save(tiny_model, tmp_path)


def test_parameters_and_shape_are_known_without_loading(tiny_model: LanguageModel, tiny_folder: Path) -> None:
    count = sum(p.numel() for p in tiny_model.model.parameters())
    shapes = weight_shapes(tiny_folder)
    assert sum(math.prod(shape) for shape, _ in shapes.values()) == count
    assert all(size == 4 * math.prod(shape) for shape, size in shapes.values())
    assert shapes["model.layers.1.mlp.down_proj.weight"] == ((64, 128), 4 * 64 * 128)
    assert model_shape(tiny_folder) == (2, 64, 1500)
    assert require_model_folder(str(tiny_folder)) == tiny_folder


@pytest.mark.real_model
def test_the_bundled_model(bundled_folder: Path) -> None:
    shapes = weight_shapes(bundled_folder).values()
    assert sum(math.prod(shape) for shape, _ in shapes) == 134_515_008
    assert sum(size for _, size in shapes) == 2 * 134_515_008
    assert model_shape(bundled_folder) == (30, 576, 49152)
    assert load_tokenizer(bundled_folder).chat_template


def test_the_bytes_of_weights_count_no_other_layout(tiny_folder: Path, tmp_path: Path) -> None:
    """Some folders hold the same weights twice; an index says which files are the model's."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    whole = weight_bytes(folder)
    assert whole == sum(p.numel() * p.element_size() for p in load(folder, device="cpu").model.parameters())
    save_file({"other.layout": torch.zeros(1000)}, folder / "consolidated.safetensors")
    assert weight_bytes(folder) == whole + 4000
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weight_shapes(tiny_folder), "model.safetensors")}))
    assert weight_bytes(folder) == whole
    for damaged in ("{", "[]", "{}", '{"weight_map": 3}'):
        index.write_text(damaged)
        with pytest.raises(InvalidArgumentError, match="is damaged"):
            weight_bytes(folder)
