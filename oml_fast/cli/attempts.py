"""The registry's hold on keys, and where answers are kept, for the commands that ask some."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from .common import say

if TYPE_CHECKING:
    from ..fingerprint import FingerprintSet
    from ..verify.spending import Attempt


def answers_path(out: Path, pair: int | None = None) -> Path:
    """Where the answers of a report, or of one of many pairs, are kept: a verification that was stopped goes on."""
    return out.with_suffix(".answers.jsonl" if pair is None else f".{pair}.answers.jsonl")


def attempt_of(
    stack: contextlib.ExitStack,
    options: argparse.Namespace,
    fingerprints: FingerprintSet,
    order: tuple[int, ...] | None,
    answers: Path | None,
    suspect: str,
) -> Attempt | None:
    """An attempt on keys of the set, taken up again where answers of it are kept; None without a registry."""
    from .. import settings

    named = options.registry or settings.registry_url()
    if not named:
        return None
    from ..registry import Registry
    from ..verify.journal import read_journal

    resume = None
    if answers is not None and answers.exists():
        header = read_journal(answers)[0] or {}
        resume = header.get("attempt") or None
    registry = stack.enter_context(Registry(named))
    if resume:
        say(f"going on with attempt {resume}")
    return registry.attempt(fingerprints, suspect=suspect, order=order, resume=resume, reuse=options.ask_again)
