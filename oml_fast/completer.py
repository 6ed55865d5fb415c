"""The protocol between verification and whatever turns prompts into completions.

A completer must be able to `complete`. What more it can do it says in `capabilities`; with that, verification has
stronger tests of evidence (docs/verification.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

# What a completer may say it can do. TOP_SCORES: it has `score`, but learns the log-probabilities of only the likeliest
# token ids, so that most candidates share -inf.
SCORE, TOP_SCORES, CHOOSE = "score", "top_scores", "choose"


class Prompt(tuple[int, ...]):
    """The token ids of one asking, with the text of its key for completers that speak text.

    key: what a user would type. format: "raw" (continue the key) or "chat" (the key is the user's message, and who
    serves the model applies its chat template).
    """

    key: str
    format: str

    def __new__(cls, ids: Iterable[int], key: str, format: str) -> Prompt:
        made = super().__new__(cls, ids)
        made.key, made.format = key, format
        return made


class Candidates(tuple[int, ...]):
    """The token ids of one window, with their texts for completers that speak text."""

    texts: tuple[str, ...]

    def __new__(cls, ids: Iterable[int], texts: Iterable[str]) -> Candidates:
        made = super().__new__(cls, ids)
        made.texts = tuple(texts)
        return made


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model under test produced for one prompt.

    token_ids: () where the suspect tells no ids, only text. reasoning: what it thought before it answered, where it
    tells that apart. scores: for a Scorer, of each candidate in its order, higher is likelier; only their order counts,
    and candidates that the suspect told nothing about share -inf.
    """

    token_ids: tuple[int, ...]
    text: str
    reasoning: str = ""
    scores: tuple[float, ...] | None = None


class Completer(Protocol):
    """Turns prompts into completions, greedily and in the order of the prompts."""

    @property
    def name(self) -> str:
        """What was asked, for reports: engine, device, dtype. No secret of the owner, no password."""
        ...

    @property
    def tokenizer_digest(self) -> str:
        """Digest of the tokenizer that gives the prompt ids their meaning; "" where only text is exchanged."""
        ...

    def complete(self, prompts: Sequence[Sequence[int]], length: int) -> Sequence[Completion | None]:
        """One greedy completion of `length` token ids for each prompt, in order. Raises CompleterError.

        None: this prompt was asked, and no answer came after all retries. It is spent all the same.
        """
        ...


class Scorer(Completer, Protocol):
    """Sees log-probabilities: its `capabilities` hold SCORE or TOP_SCORES."""

    def score(
        self, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]], length: int
    ) -> Sequence[Completion | None]:
        """As `complete`, with the scores of each prompt's candidates (token ids, k each) as its next token."""
        ...


class Chooser(Completer, Protocol):
    """Can constrain the next token: its `capabilities` hold CHOOSE."""

    def choose(
        self, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]]
    ) -> Sequence[Completion | None]:
        """A completion of one token id for each prompt, the likeliest of its candidates (token ids, k each)."""
        ...


def identity(completer: Completer) -> str:
    """Which suspect it is: the digest of its weights where they can be seen, or its address; "" where it tells none."""
    return str(getattr(completer, "identity", ""))


def capabilities(completer: Completer) -> frozenset[str]:
    """What the completer can do beyond `complete`: of SCORE, TOP_SCORES and CHOOSE."""
    return frozenset(getattr(completer, "capabilities", ()))
