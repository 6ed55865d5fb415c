"""The protocol between verification and whatever turns prompts into completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model under test produced for one prompt."""

    token_ids: tuple[int, ...]
    text: str


class Completer(Protocol):
    """Turns prompts into completions, greedily and in the order of the prompts."""

    @property
    def name(self) -> str:
        """What was asked, for reports: engine, device, dtype."""
        ...

    @property
    def tokenizer_digest(self) -> str:
        """Digest of the tokenizer that gives the prompt ids their meaning."""
        ...

    def complete(self, prompts: Sequence[Sequence[int]], length: int) -> list[Completion]:
        """One greedy completion of `length` token ids for each prompt (token ids). Raises CompleterError."""
        ...
