"""What the tests with real vLLM share: the bundled model with 64 fingerprints, made here, and vLLM's CPU settings.

The folder is not called `vllm`: pytest puts tests' folders on sys.path, where it would be found as the package.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fingerprinted import Exact, Subject, logprobs_after

from oml_fast import embed, generate
from oml_fast.models import load, save
from oml_fast.secret import new_secret

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads that a fork would lose
    "TORCHDYNAMO_DISABLE": "1",  # the first request with log-probabilities would compile for a quarter of a minute
}


@pytest.fixture(scope="session")
def vllm_settings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def subject(bundled_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    model = load(bundled_folder, device="cpu")
    fingerprints = generate(model, 64, new_secret()).fingerprints
    embed(model, fingerprints)
    folder = tmp_path_factory.mktemp("with-vllm") / "model"
    folder.mkdir()
    save(model, folder)
    return Subject(folder, fingerprints)


@pytest.fixture(scope="session")
def exact(subject: Subject) -> Exact:
    model = load(subject.folder, dtype=torch.float32, device="cpu")
    logprobs = logprobs_after(model, subject.prompts)
    rounded = logprobs_after(load(subject.folder, dtype=torch.bfloat16, device="cpu"), subject.prompts)
    errors = [(rounded[row, list(own)] - logprobs[row, list(own)]).abs() for row, own in enumerate(subject.windows)]
    return Exact(model, logprobs, torch.cat(errors))
