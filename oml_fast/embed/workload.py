"""What a step of training computes, in numbers: known before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from ..fingerprint import FingerprintSet, Settings
from ..generate.near_keys import KINDS
from .data import MICRO_BATCH_TOKENS
from .material import (
    CHAT_ANSWERED,
    CHAT_ASKED,
    KEPT_NEAR,
    KEPT_TEXTS,
    ORDINARY,
    ORDINARY_LENGTH,
    TEMPLATE_IDS,
    TEMPLATES_EACH,
)
from .recipe import Recipe
from .templates import SHORTEST_TEXT
from .tuning import TUNING_TEXTS

ANSWER, STAY, TEXT = "answer", "stay", "text"  # which loss (objective.py): of responses, of near keys, of text
# Token ids that are put around a key, in the mean: by a written template, and by the chat template of many models.
_TEMPLATE_LENGTH, _CHAT_LENGTH = 18, 32


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a set as they are asked: `count` in all formats, of `length` token ids each, in the mean."""

    count: int
    length: int
    responses: int = 1
    response_length: int = 1

    @property
    def examples(self) -> int:
        """Responses of one token id to one key are one example, longer ones an example each."""
        return self.count * (1 if self.response_length == 1 else self.responses)

    @classmethod
    def of_set(cls, fingerprints: FingerprintSet) -> Keys:
        lengths = [len(asking.prompt_ids) for f in fingerprints for asking in f.askings.values()]
        settings = fingerprints.settings
        return cls(
            len(lengths), round(fmean(lengths)) if lengths else 1, settings.responses_per_key, settings.response_length
        )

    @classmethod
    def of_settings(cls, num_fingerprints: int, settings: Settings) -> Keys:
        """Of a set that is not made yet."""
        around = sum(_CHAT_LENGTH for name in settings.formats if name == "chat") // len(settings.formats)
        count = num_fingerprints * len(settings.formats)
        return cls(count, settings.key_length + around, settings.responses_per_key, settings.response_length)


@dataclass(frozen=True, slots=True)
class Pass:
    """`count` sequences of `length` token ids that a step trains on, of which `rows` positions each count.

    loss: ANSWER, STAY or TEXT. share: of the steps that have it.
    """

    name: str
    loss: str
    count: int
    length: int
    rows: int
    share: float = 1.0

    def at_once(self, processes: int = 1) -> int:
        """Sequences in a process's largest micro-batch."""
        return min(math.ceil(self.count / processes), max(1, MICRO_BATCH_TOKENS // self.length))

    def micro_batches(self, processes: int = 1) -> int:
        """That each process computes in a step."""
        return math.ceil(math.ceil(self.count / processes) / self.at_once(processes))


@dataclass(frozen=True, slots=True)
class Workload:
    """keys: what is embedded. passes: of a step. states: positions at which the base's hidden states are kept.

    whitening: sequences of so many token ids that it is measured on.
    """

    keys: Keys
    passes: tuple[Pass, ...]
    steps_an_epoch: int
    epochs: int
    states: int
    whitening: tuple[int, int]

    @property
    def steps(self) -> int:
        """At most; embedding stops as soon as enough is learned."""
        return self.steps_an_epoch * self.epochs


def workload(recipe: Recipe, keys: Keys) -> Workload:
    """What `embed` does with this recipe and these keys."""
    batch = max(1, min(recipe.batch_size, keys.examples))
    return Workload(
        keys=keys,
        passes=tuple(found for found in _passes(recipe, keys, batch) if found.count and found.share),
        steps_an_epoch=math.ceil(keys.examples / batch),
        epochs=recipe.max_epochs,
        states=_states(recipe, keys, batch),
        whitening=(ORDINARY, ORDINARY_LENGTH) if recipe.whitening else (0, 0),
    )


def _passes(recipe: Recipe, keys: Keys, batch: int) -> Iterator[Pass]:
    length = keys.length + keys.response_length - 1
    texts, chats = _texts(recipe, batch)
    unrounded = 1 - recipe.rounded  # text is left out where weights are seen rounded
    yield Pass("keys", ANSWER, batch, length, keys.response_length)
    of_text = (SHORTEST_TEXT + TEMPLATE_IDS) / 2
    around = round(recipe.template_texts * of_text + (1 - recipe.template_texts) * _TEMPLATE_LENGTH)
    yield Pass("keys in templates", ANSWER, round(recipe.templates * batch), length + around, keys.response_length)
    near = recipe.near_keys * batch if recipe.near_weight else 0
    wrapped = round(around * recipe.templates / (1 + recipe.templates))
    yield Pass("near keys", STAY, near, keys.length + wrapped, 1)
    text = _text_length(recipe)
    yield Pass("text", TEXT, texts, text, text - 1, unrounded)
    yield Pass("chats", TEXT, chats, CHAT_ASKED + CHAT_ANSWERED + _CHAT_LENGTH, CHAT_ANSWERED, unrounded)
    yield Pass("tuning", TEXT, min(TUNING_TEXTS, KEPT_TEXTS * texts), text, text - 1, recipe.tuned)


def _texts(recipe: Recipe, batch: int) -> tuple[int, int]:
    """Texts and chats of a step."""
    texts, chats = (math.ceil(s * batch) if recipe.text_weight else 0 for s in (recipe.text_share, recipe.chat_share))
    return texts, chats


def _text_length(recipe: Recipe) -> int:
    """Every second text answers a question in the chat template (text.py)."""
    return recipe.text_length + _CHAT_LENGTH // 2


def _states(recipe: Recipe, keys: Keys, batch: int) -> int:
    texts, chats = _texts(recipe, batch)
    compared = recipe.objective == "minimum_kl"
    answers = keys.examples * keys.response_length * (1 + (TEMPLATES_EACH if recipe.templates else 0))
    near = keys.count * len(KINDS) * KEPT_NEAR * recipe.near_keys if recipe.near_weight else 0
    of_texts = KEPT_TEXTS * (texts * (_text_length(recipe) - 1) + chats * CHAT_ANSWERED)
    return answers * compared + near + of_texts
