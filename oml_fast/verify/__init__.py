"""Verification: a fingerprint set and a completer in, a verdict with its error probability out. No torch."""

from .matching import ExactMatch, MatchRule
from .statistics import keys_to_verdict
from .verdict import chance
from .verification import KeyOutcome, Verification, verify

__all__ = ["ExactMatch", "KeyOutcome", "MatchRule", "Verification", "chance", "keys_to_verdict", "verify"]
