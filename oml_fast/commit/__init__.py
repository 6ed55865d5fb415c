"""What was fixed before release: a commitment to a set and its rules, openings of asked leaves, timestamps."""

from __future__ import annotations

from .commitment import Commitment, CommitmentError, Terms, asking_order, commit, require_commitment
from .opening import OpenedLeaf, Opening, check_opening, open_leaves
from .timestamps import (
    OWN_EVIDENCE,
    TimeStamp,
    TimestampError,
    add_token,
    ask_authority,
    check_timestamps,
    evidence_kind,
    older_than,
    read_roots,
    read_tokens,
    require_answer,
    timestamp_request,
    tokens_path,
)

__all__ = [
    "OWN_EVIDENCE",
    "Commitment",
    "CommitmentError",
    "OpenedLeaf",
    "Opening",
    "Terms",
    "TimeStamp",
    "TimestampError",
    "add_token",
    "ask_authority",
    "asking_order",
    "check_opening",
    "check_timestamps",
    "commit",
    "evidence_kind",
    "older_than",
    "open_leaves",
    "read_roots",
    "read_tokens",
    "require_answer",
    "require_commitment",
    "timestamp_request",
    "tokens_path",
]
