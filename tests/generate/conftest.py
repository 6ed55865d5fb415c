"""What the tests of `generate` share."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture(scope="module")
def module_units() -> Iterator[Callable[[int], None]]:
    """Make units smaller, until the module's tests are over: a tiny model needs 256 candidates for nothing."""
    with pytest.MonkeyPatch.context() as patch:

        def size(candidates: int) -> None:
            units = importlib.import_module("oml_fast.generate.units")
            patch.setattr(units, "UNIT", candidates)
            patch.setattr(units, "_PARTS", 1)

        yield size
