"""Lets the tests in this folder import what all tests share (tests/sets.py), also when they run alone."""

import sys
from pathlib import Path

_TESTS = str(Path(__file__).resolve().parents[1])
if _TESTS not in sys.path:
    sys.path.insert(0, _TESTS)
