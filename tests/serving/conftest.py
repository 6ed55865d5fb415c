"""An owner in a folder of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from gating import Owner


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    return Owner(tmp_path)
