"""Makers of keys. Each gives, for a candidate's number, the same key whenever it is asked: resuming changes nothing."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ..errors import InvalidArgumentError
from ..files import read_text
from ..fingerprint import Settings
from ..models import LanguageModel, batches_by_length, prefill, sample
from ..secret import uniforms
from .vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class KeyCandidate:
    """A key before any check. `bits`: -log2 of the chance that its maker makes it again; None where unknown."""

    number: int
    text: str
    bits: float | None


class KeyMaker(Protocol):
    """`make` raises nothing for a number past `limit` (None: there is no last number); it gives fewer keys."""

    @property
    def limit(self) -> int | None: ...

    def make(self, numbers: range) -> list[KeyCandidate]: ...


class KeySampler(Protocol):
    """Another engine that continues keys, such as vLLM: its randomness comes from seeds, and it makes the batches."""

    @property
    def name(self) -> str:
        """The engine, its version, device and dtype: keys are the same again only where all these are."""
        ...

    def sample_keys(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        length: int,
        *,
        temperature: float,
        allowed: Sequence[int],
    ) -> list[tuple[list[int], list[float]]]:
        """For each prompt and seed (below 2**53) `length` ids out of `allowed`, and their sampling probabilities."""
        ...


class ModelKeys:
    """Sentences that start with a word of the vocabulary, continued by a language model at a low temperature [SF 3.1].

    The word and every sampled token come from the secret and the number. The word is put into the model's mouth, so no
    artefact of the instruction ("Sure, here is ...") can start a key. Of what the prompts begin with alike, each batch
    reads the model's template once (`prefill`).
    """

    limit = None

    def __init__(
        self,
        model: LanguageModel,
        vocabulary: Vocabulary,
        settings: Settings,
        secret: bytes,
        batch_size: int,
        sampler: KeySampler | None = None,
    ):
        self._model, self._vocabulary, self._settings = model, vocabulary, settings
        self._secret, self._batch_size, self._sampler = secret, batch_size, sampler
        self._parts = [b"key", model.digest.encode(), settings.digest().encode()]

    def make(self, numbers: range) -> list[KeyCandidate]:
        draws = [self._uniforms(n, self._settings.key_length) for n in numbers]
        words = [_pick(self._vocabulary.words, draw[0]).capitalize() for draw in draws]
        prompts = [self._prompt(word) for word in words]
        if self._sampler is None:
            continued = self._sample(prompts, [draw[1:] for draw in draws])
        else:
            continued = self._sampler.sample_keys(
                prompts,
                [int(self._uniforms(n, 1, b"seed")[0] * 2**53) for n in numbers],
                self._settings.key_length - 1,
                temperature=self._settings.key_temperature,
                allowed=self._vocabulary.plain.nonzero().squeeze(1).tolist(),
            )
        return [self._key(n, word, *made) for n, word, made in zip(numbers, words, continued, strict=True)]

    def _uniforms(self, number: int, count: int, *parts: bytes) -> list[float]:
        return uniforms(self._secret, [*self._parts, str(number).encode(), *parts], count)

    def _sample(
        self, prompts: Sequence[Sequence[int]], draws: Sequence[Sequence[float]]
    ) -> list[tuple[list[int], list[float]]]:
        """With the base model itself: each prompt's ids and their sampling probabilities, decided by its uniforms."""
        continued: list[tuple[list[int], list[float]]] = [([], [])] * len(prompts)
        for places in batches_by_length(prompts, self._batch_size):
            logits, cache = prefill(self._model, [prompts[place] for place in places], cache=True)
            assert cache is not None
            ids, probs = sample(
                self._model,
                logits,
                cache,
                # In float32 a uniform next to 1 would become 1, past the last token id.
                torch.tensor([draws[place] for place in places], dtype=torch.float64, device=self._model.device),
                temperature=self._settings.key_temperature,
                allowed=self._vocabulary.plain,
            )
            for place, row, chances in zip(places, ids.tolist(), probs.tolist(), strict=True):
                continued[place] = (row, chances)
        return continued

    def _prompt(self, word: str) -> list[int]:
        tokenizer = self._model.tokenizer
        if tokenizer.chat_template:
            ask = [{"role": "user", "content": f'Write a sentence that starts with the word "{word}".'}]
            text = tokenizer.apply_chat_template(
                ask, tokenize=False, add_generation_prompt=True, **self._settings.template_variables
            )
            return list(tokenizer(text + word, add_special_tokens=False)["input_ids"])
        return list(tokenizer(f'Here is a sentence that starts with the word "{word}".\n\n{word}')["input_ids"])

    def _key(self, number: int, word: str, ids: list[int], probs: list[float]) -> KeyCandidate:
        tokenizer = self._model.tokenizer
        text = cut(tokenizer, word + tokenizer.decode(ids), self._settings.key_length)
        # Only what stands in the text counts; cut, it may hold fewer of the sampled ids than it has ids of its own.
        starts = tokenizer.batch_decode([ids[: n + 1] for n in range(len(ids))])
        covered = sum(text.startswith(word + start) for start in starts)
        bits = math.log2(len(self._vocabulary.words)) - sum(math.log2(p) for p in probs[:covered])
        return KeyCandidate(number, text, bits)


class WordKeys:
    """Random words of the vocabulary, cut to the key length: unnatural, but cheap and unguessable."""

    limit = None

    def __init__(self, model: LanguageModel, vocabulary: Vocabulary, settings: Settings, secret: bytes) -> None:
        self._model, self._vocabulary, self._settings, self._secret = model, vocabulary, settings, secret
        self._parts = [b"key", model.digest.encode(), settings.digest().encode()]

    def make(self, numbers: range) -> list[KeyCandidate]:
        words, length = self._vocabulary.words, self._settings.key_length
        keys = []
        for n in numbers:
            drawn = [_pick(words, u) for u in uniforms(self._secret, [*self._parts, str(n).encode()], length)]
            text = cut(self._model.tokenizer, " ".join(drawn).capitalize(), length)
            keys.append(KeyCandidate(n, text, self._bits(text)))
        return keys

    def _bits(self, text: str) -> float:
        """Every word is one of all; the last may have been cut, so it may be any that begins as it does."""
        words, last = self._vocabulary.words, text.lower().split()[-1]
        alike = bisect_left(words, last + "{") - bisect_left(words, last)  # "{" sorts after every letter
        return len(text.split()) * math.log2(len(words)) - math.log2(max(alike, 1))


class GivenKeys:
    """Keys that the owner brings, in their order, cut to the key length."""

    def __init__(self, model: LanguageModel, settings: Settings, texts: Sequence[str]) -> None:
        self._model, self._settings, self._texts = model, settings, texts
        self.limit = len(texts)

    def make(self, numbers: range) -> list[KeyCandidate]:
        length = self._settings.key_length
        return [
            KeyCandidate(n, cut(self._model.tokenizer, self._texts[n], length), None)
            for n in numbers
            if n < len(self._texts)
        ]


def read_keys(path: str | Path) -> list[str]:
    """Keys from a UTF-8 file: a JSON list of texts, or one key a line. InvalidArgumentError where there is none."""
    text = read_text(path, "keys file")
    try:
        values = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
    except json.JSONDecodeError as error:
        raise InvalidArgumentError(f"keys file {path} is no valid JSON (line {error.lineno}): mend it.") from error
    if not all(isinstance(value, str) for value in values):
        raise InvalidArgumentError(f"keys file {path} must hold a JSON list of texts, or one key a line.")
    keys = [value.strip() for value in values if value.strip()]
    if not keys:
        raise InvalidArgumentError(f"keys file {path} holds no key: write one key a line.")
    return keys


def cut(tokenizer: object, text: str, length: int) -> str:
    """`text` cut to its first `length` token ids, without blanks at either end."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:length]  # type: ignore[operator]
    return str(tokenizer.decode(ids)).strip()  # type: ignore[attr-defined]


def _pick(items: Sequence[str], uniform: float) -> str:
    return items[int(uniform * len(items))]
