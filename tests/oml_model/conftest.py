"""A scene in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from scenes import Scene

from oml_fast.models import LanguageModel


@pytest.fixture
def scene(tmp_path: Path, fresh_model: LanguageModel) -> Iterator[Scene]:
    made = Scene(tmp_path, fresh_model)
    yield made
    made.store.close()
