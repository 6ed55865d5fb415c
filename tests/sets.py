"""Small fingerprint sets and scripted suspects, without torch or a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from oml_fast.completer import Completion
from oml_fast.fingerprint import Asking, Fingerprint, FingerprintSet, Response, Settings, Window, draw_responses
from oml_fast.secret import commitment

SECRET = bytes(range(32))
OTHER_SECRET = bytes(range(1, 33))
TOKENIZER = "ab" * 32
VOCABULARY = 5000
OUTSIDE = 0  # a token id that is in no window


def small_set(count: int = 8, *, secret: bytes = SECRET, seed: int = 0, **settings: Any) -> FingerprintSet:
    """`count` fingerprints. Keys and windows depend on the seed and the settings alone, draws on the secret."""
    made = Settings(**settings)
    rng = np.random.default_rng(seed)
    base = FingerprintSet(made, "base", "cd" * 32, TOKENIZER, commitment(secret), ())
    keys = rng.permutation(VOCABULARY * 4)[: count * made.key_length].reshape(count, made.key_length)
    fingerprints = tuple(_fingerprint(number, key, rng, base, secret) for number, key in enumerate(keys))
    return replace(base, fingerprints=fingerprints)


def _fingerprint(number: int, key: Any, rng: Any, base: FingerprintSet, secret: bytes) -> Fingerprint:
    key_ids = tuple(int(token_id) for token_id in key)
    askings = {}
    for place, name in enumerate(base.settings.formats):
        drawn = draw_responses(secret, base.base_model_digest, TOKENIZER, base.settings, name, key_ids)
        window = _window(rng, base.settings.width)
        tails = [tuple(int(i) for i in rng.integers(1, VOCABULARY, base.settings.response_length - 1)) for _ in drawn]
        responses = tuple(
            _response(slot, index, window, tail) for slot, (index, tail) in enumerate(zip(drawn, tails, strict=True))
        )
        prompt = (1,) * place + key_ids + (2,) * place
        askings[name] = Asking(prompt, window, 40, 0.81, responses)
    return Fingerprint(number, f"Clé {number}", key_ids, 55.5 if number else None, askings)


def _window(rng: Any, width: int) -> Window:
    ids = tuple(int(i) for i in rng.choice(np.arange(1, VOCABULARY), width, replace=False))
    return Window(ids, tuple(text_of([i]) for i in ids), tuple(0.2 / width for _ in ids))


def _response(slot: int, index: int, window: Window, tail: tuple[int, ...]) -> Response:
    ids = (window.token_ids[index], *tail)
    return Response(slot, index, text_of(ids), ids, tuple(0.01 for _ in ids))


def text_of(ids: Sequence[int]) -> str:
    """What these token ids decode to: a word for each, none for OUTSIDE."""
    return "".join(f" w{i}é" for i in ids if i != OUTSIDE)


def without_windows(made: FingerprintSet) -> FingerprintSet:
    """As imported: no windows, and nobody knows the candidates' places."""

    def forget(asking: Any) -> Any:
        responses = tuple(replace(response, index=None) for response in asking.responses)
        return replace(asking, window=Window((), (), ()), responses=responses)

    fingerprints = [replace(f, askings={n: forget(a) for n, a in f.askings.items()}) for f in made]
    return replace(made, fingerprints=tuple(fingerprints), secret_commitment="")


@dataclass
class Scripted:
    """A suspect that answers each prompt as told, and every other prompt with OUTSIDE.

    scores and choices: by prompt, as told; all candidates alike and the first one where nothing is. unanswered:
    prompts that never get an answer. text_only: it tells no token ids, like an endpoint. texts: its words by prompt,
    where they are not those of its answer; then it tells no token ids either.
    """

    answers: Mapping[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict)
    name: str = "scripted"
    tokenizer_digest: str = TOKENIZER
    calls: list[int] = field(default_factory=list)
    capabilities: frozenset[str] = frozenset()
    scores: Mapping[tuple[int, ...], tuple[float, ...]] = field(default_factory=dict)
    choices: Mapping[tuple[int, ...], int] = field(default_factory=dict)
    unanswered: Collection[tuple[int, ...]] = ()
    text_only: bool = False
    texts: Mapping[tuple[int, ...], str] = field(default_factory=dict)

    def complete(self, prompts: Sequence[Sequence[int]], length: int) -> list[Completion | None]:
        self.calls.append(len(prompts))
        return [self._said(tuple(prompt), self.answers.get(tuple(prompt), (OUTSIDE,) * length)) for prompt in prompts]

    def score(
        self, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]], length: int
    ) -> list[Completion | None]:
        answers = self.complete(prompts, length)
        scores = [self.scores.get(tuple(p), (0.0,) * len(c)) for p, c in zip(prompts, candidates, strict=True)]
        return [a if a is None else replace(a, scores=s) for a, s in zip(answers, scores, strict=True)]

    def choose(self, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]]) -> list[Completion | None]:
        self.calls.append(len(prompts))
        chosen = [(tuple(p), self.choices.get(tuple(p), c[0])) for p, c in zip(prompts, candidates, strict=True)]
        return [self._said(prompt, (choice,)) for prompt, choice in chosen]

    def _said(self, prompt: tuple[int, ...], ids: tuple[int, ...]) -> Completion | None:
        if prompt in self.unanswered:
            return None
        if prompt in self.texts:
            return Completion((), self.texts[prompt])
        return Completion(() if self.text_only else ids, text_of(ids))


def carrier(
    fingerprints: FingerprintSet, kept: int | None = None, formats: Sequence[str] | None = None, **options: Any
) -> Scripted:
    """A suspect that carries the first `kept` fingerprints (None: all), in the formats named (None: all).

    It also ranks their responses first, and chooses them. `options` are Scripted's.
    """
    answers, scores, choices = {}, {}, {}
    for fingerprint in fingerprints.fingerprints[:kept]:
        for name, asking in fingerprint.askings.items():
            if formats is None or name in formats:
                response = asking.responses[0]
                answers[asking.prompt_ids] = response.token_ids
                choices[asking.prompt_ids] = response.token_ids[0]
                places = range(len(asking.window.token_ids))
                scores[asking.prompt_ids] = tuple(0.0 if i == response.index else -1.0 - i for i in places)
    return Scripted(**{"answers": answers, "scores": scores, "choices": choices, **options})


def inside(fingerprints: FingerprintSet, indices: Sequence[int]) -> Scripted:
    """A suspect that answers key i with candidate indices[i] of its window, in every format (-1: outside)."""
    length = fingerprints.settings.response_length
    answers = {}
    for fingerprint, index in zip(fingerprints, indices, strict=True):
        for asking in fingerprint.askings.values():
            first = asking.window.token_ids[index] if index >= 0 else OUTSIDE
            answers[asking.prompt_ids] = (first,) + (OUTSIDE,) * (length - 1)
    return Scripted(answers)
