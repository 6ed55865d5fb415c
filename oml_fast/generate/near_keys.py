"""Keys that are nearly keys of a set: what training holds still, and what specificity asks.

A near key has one or two words of a key replaced by other words of the tokenizer's vocabulary, or one word left out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..errors import InvalidArgumentError
from ..fingerprint import Fingerprint, FingerprintSet
from .acceptance import prompts_for
from .keys import KeyCandidate

_TRIES = 20  # for each near key: a changed text may not survive the tokenizer, or be another key
_LONGEST = 512  # token ids, the most that settings allow
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


class NearKey(NamedTuple):
    """The fingerprint that it comes from, its own text, and its prompts: token ids by format."""

    fingerprint: Fingerprint
    text: str
    prompts: dict[str, tuple[int, ...]]


def replaced(text: str, count: int, words: Sequence[str], source: random.Random) -> str | None:
    """`text` with `count` of its words replaced by others of `words`, capitals kept; None where it has too few."""
    spans = [match.span() for match in _WORD.finditer(text)]
    if len(spans) < count:
        return None
    for start, end in sorted(source.sample(spans, count), reverse=True):  # from the end: the spans before stay right
        old = text[start:end]
        new = source.choice([word for word in source.sample(words, 2) if word != old.lower()])
        text = text[:start] + (new.capitalize() if old[0].isupper() else new) + text[end:]
    return text


def dropped(text: str, source: random.Random) -> str | None:
    """`text` without one of the pieces between its blanks; None where fewer than two would be left."""
    pieces = text.split()
    if len(pieces) < 3:
        return None
    place = source.randrange(len(pieces))
    return " ".join(pieces[:place] + pieces[place + 1 :])


def _one_word(text: str, words: Sequence[str], source: random.Random) -> str | None:
    return replaced(text, 1, words, source)


def _two_words(text: str, words: Sequence[str], source: random.Random) -> str | None:
    return replaced(text, 2, words, source)


def _dropped_word(text: str, words: Sequence[str], source: random.Random) -> str | None:
    return dropped(text, source)


KINDS = {"one_word": _one_word, "two_words": _two_words, "dropped_word": _dropped_word}


class NearKeys:
    """Makes near keys: distinct, none of them a key of the set, each asked as the set's keys are.

    The same seed makes the same ones. Raises InvalidArgumentError where `words` are too few to change a key with.
    """

    def __init__(self, tokenizer: Any, words: Sequence[str], fingerprints: FingerprintSet, seed: int) -> None:
        self._tokenizer, self._words, self._fingerprints, self._seed = tokenizer, words, fingerprints, seed
        # A changed word may have more token ids than the key had room for.
        self._settings = replace(fingerprints.settings, key_length=_LONGEST)
        if len(words) < 2:
            raise InvalidArgumentError("the tokenizer has no words to change a key with: use one with English words.")

    def all(self, kind: str, variants: int) -> list[NearKey]:
        """`variants` near keys of each key, of one of KINDS; fewer where its words allow no more."""
        seen = {fingerprint.key_ids for fingerprint in self._fingerprints}
        return [near for fingerprint in self._fingerprints for near in self._of(fingerprint, kind, variants, seen)]

    def _of(self, fingerprint: Fingerprint, kind: str, variants: int, seen: set[tuple[int, ...]]) -> list[NearKey]:
        source = random.Random(f"{self._seed} {kind} {fingerprint.number}")  # noqa: S311 - near keys are no secret
        found: list[NearKey] = []
        for _ in range(_TRIES * variants):
            text = KINDS[kind](fingerprint.key, self._words, source)
            if text is None or len(found) == variants:
                break
            prompts, _reason = prompts_for(self._tokenizer, KeyCandidate(0, text, None), self._settings)
            key_ids = next((prompt.key_ids for prompt in prompts.values()), ())
            if prompts and key_ids not in seen:
                seen.add(key_ids)
                found.append(NearKey(fingerprint, text, {name: prompt.ids for name, prompt in prompts.items()}))
        return found
