"""Loading and saving with transformers: local folders, safetensors only, no remote code unless asked for by name."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open

from ..errors import InvalidArgumentError, OmlError
from .digests import model_digest, tokenizer_digest
from .language_model import LanguageModel


def load(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    packed: bool = False,
) -> LanguageModel:
    """Load the model in `folder`. `dtype` None keeps the weights' own; `device` "auto" takes a GPU where there is one.

    packed: for training on sequences of many lengths in one row, with flash or flex attention on a GPU.

    Raises InvalidArgumentError where the folder is no model, holds pickle weights, or names an unknown architecture.
    """
    folder = require_model_folder(folder)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    device = resolve_device(device)
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or "auto",
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
            attn_implementation=attention(device, packed),
        )
    except (ValueError, TypeError, OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise InvalidArgumentError(
            f"{folder} cannot be loaded as a causal language model ({_first(error)}): save or download it again, or "
            "name another model."
        ) from error
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        # transformers would fill these with random numbers.
        raise InvalidArgumentError(
            f"{folder} lacks {len(missing)} of its weights, {missing[0]} among them: save or download it again."
        )
    model = torch.nn.Module.to(model, device)
    digest, own = model_digest(folder), tokenizer_digest(tokenizer)
    return LanguageModel(model, tokenizer, str(folder), digest, own, packs=packed)


def attention(device: str, packed: bool) -> str | None:
    """transformers' name of the attention to use; None leaves it to transformers."""
    if device == "cpu":
        return "eager"  # fingerprints are short: torch's fused attention is slower for them, in training by a third
    if not packed:
        return None
    return "flash_attention_2" if importlib.util.find_spec("flash_attn") else "flex_attention"


def load_tokenizer(folder: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer in `folder`; InvalidArgumentError where there is none that works."""
    folder = require_model_folder(folder)
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (ValueError, TypeError, OSError, KeyError, ImportError) as error:
        raise InvalidArgumentError(
            f"{folder} holds no tokenizer that can be loaded ({_first(error)}): save one there with save_pretrained."
        ) from error


def save(model: LanguageModel, folder: str | Path) -> None:
    """Write weights (safetensors), configuration, tokenizer and chat template into `folder`, made where it is missing.

    Raises OmlError when the disk is full or cannot be written.
    """
    try:
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        for file in Path(folder).iterdir():
            file.chmod(0o644)
    except (OSError, SafetensorError) as error:
        raise OmlError(f"cannot write the model: {_first(error)}. Free space or choose another --out.") from error


def require_model_folder(folder: str | Path) -> Path:
    """The path, if it looks like a model that may be loaded; otherwise InvalidArgumentError with the reason."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InvalidArgumentError(
            f"{folder} is no model folder (it has no config.json): name a folder written by save_pretrained."
        )
    try:
        json.loads((folder / "config.json").read_bytes())
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {folder}/config.json: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{folder}/config.json is damaged: save or download it again.") from error
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        found = f"only pickle weights ({pickles[0]}), which can run code" if pickles else "no weights"
        raise InvalidArgumentError(f"{folder} holds {found}: oml_fast reads safetensors only. Convert the weights.")
    return folder


def weight_shapes(folder: Path) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shape and bytes of each tensor in the safetensors of `folder`, by name, from their headers alone.

    Raises InvalidArgumentError where a header is damaged.
    """
    found: dict[str, tuple[tuple[int, ...], int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"), file.open("rb") as stream:  # the former refuses what is damaged
                header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        except (OSError, SafetensorError) as error:
            raise InvalidArgumentError(f"{file} is damaged ({_first(error)}): save or download it again.") from error
        for name, tensor in header.items():
            if name != "__metadata__":
                start, end = tensor["data_offsets"]
                found[name] = tuple(tensor["shape"]), end - start
    return found


def weight_bytes(folder: Path) -> int:
    """The bytes of the weights that transformers would load from `folder`, from headers alone.

    With an index, those of the files that it names: some folders hold the same weights in another layout, too. Raises
    InvalidArgumentError where a header is damaged.
    """
    index = folder / "model.safetensors.index.json"
    try:
        named = json.loads(index.read_bytes())["weight_map"].keys() if index.is_file() else None
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise InvalidArgumentError(f"{index} is damaged: save or download it again.") from error
    return sum(size for name, (_, size) in weight_shapes(folder).items() if named is None or name in named)


def model_shape(folder: Path) -> tuple[int, int, int]:
    """Layers, hidden size H and vocabulary V of the model in `folder`, from its configuration alone."""
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
        return int(config.num_hidden_layers), int(config.hidden_size), int(config.vocab_size)
    except (ValueError, OSError, KeyError, AttributeError) as error:
        raise InvalidArgumentError(f"{folder} has no configuration of a language model: {_first(error)}") from error


def resolve_device(device: str) -> str:
    """ "auto" becomes "cuda" where torch sees one, otherwise "cpu"; a device that is not here is refused."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise InvalidArgumentError(f"device {device!r} is unknown: use auto, cpu, cuda or cuda:N.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InvalidArgumentError(f"device {device!r} is not available here: use --device cpu.")
    return device


def _first(error: BaseException) -> str:
    """The first line of a third party's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .:")
