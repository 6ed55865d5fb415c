"""A set to be trained, for files that make none of their own."""

from __future__ import annotations

import pytest

from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import generate
from oml_fast.models import LanguageModel


@pytest.fixture(scope="module")
def made(tiny_model: LanguageModel) -> FingerprintSet:
    return generate(tiny_model, 32, bytes(range(32)), settings=Settings(key_source="words")).fingerprints
