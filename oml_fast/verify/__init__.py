"""Verification: a fingerprint set and a completer in, a verdict with its error probability out. No torch."""

from .many import Verifications, verify_many
from .matching import ExactMatch, MatchRule, PrefixMatch, WithinMatch, match_rule
from .power import keys_to_verdict, sequential_cost
from .verdict import chance
from .verification import KeyOutcome, Verification, verify

__all__ = [
    "ExactMatch",
    "KeyOutcome",
    "MatchRule",
    "PrefixMatch",
    "Verification",
    "Verifications",
    "WithinMatch",
    "chance",
    "keys_to_verdict",
    "match_rule",
    "sequential_cost",
    "verify",
    "verify_many",
]
