"""All that an embedding trains on, made once: keys, keys in templates, near keys and text, with what the base says."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ..fingerprint import FingerprintSet
from ..generate.near_keys import KINDS, NearKeys
from ..generate.vocabulary import Vocabulary
from ..measure import BaseView, Head, head_copy
from ..models import LanguageModel
from .data import examples, first_ids
from .recipe import Recipe
from .templates import BUILT_IN, InTemplates, Template, after_texts, in_templates, read_templates
from .text import sample_chats, sample_texts
from .whitening import Inputs

KEPT_TEXTS = 4  # times as many texts are sampled as a step takes
TEMPLATE_TEXTS, TEMPLATE_IDS = 128, 120  # texts that keys stand after, and the most token ids of one
CHAT_ASKED, CHAT_ANSWERED = 16, 8  # token ids of a chat's two sides
TEMPLATES_EACH = 8  # of each key
KEPT_NEAR = 4  # times as many near keys of each kind are made as a step takes of all kinds
ORDINARY, ORDINARY_LENGTH = 96, 64  # texts that whitening is measured on
_MOST_NEAR = 1024  # near keys that it is measured on
_NEAR_SEED = 20_000  # beside the recipe's: specificity asks near keys of the seeds around 0


class Item(Protocol):
    """number: of its fingerprint. sequence, start: token ids, and the place of the first that is predicted."""

    @property
    def number(self) -> int: ...
    @property
    def sequence(self) -> tuple[int, ...]: ...
    @property
    def start(self) -> int: ...


@dataclass(frozen=True, slots=True)
class NearPrompt:
    """A near key in one format, as ids, and the first ids of the responses that it must not get."""

    number: int
    ids: tuple[int, ...]
    firsts: tuple[int, ...]

    @property
    def sequence(self) -> tuple[int, ...]:
        return (*self.ids, self.firsts[0])

    @property
    def start(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Text:
    """Sampled from the base model; it counts from `start` on."""

    sequence: tuple[int, ...]
    start: int = 1
    number: int = -1


Kind = TypeVar("Kind", bound=Item)


class Part(Generic[Kind]):
    """Items of one kind, with what the base model predicts in them where `base` is there."""

    def __init__(self, items: Iterable[Kind], base: BaseView | None = None) -> None:
        self.items, self.base = list(items), base
        self._of: dict[int, list[int]] = {}
        for place, item in enumerate(self.items):
            self._of.setdefault(item.number, []).append(place)

    def draw(self, count: int, order: random.Random, numbers: Sequence[int] | None = None) -> list[int]:
        """`count` places, or as many as there are: of all, or of the fingerprints with these numbers."""
        places: Sequence[int] = range(len(self.items))
        if numbers is not None:
            places = [place for number in dict.fromkeys(numbers) for place in self._of.get(number, ())]
        return order.sample(places, min(count, len(places)))


class Material:
    """keys: every fingerprint in every format. wrapped: the same in templates. near: near keys. texts: sampled text.

    chats: the beginnings of answers in sampled chats. head: a copy of the base's; on_host: as BaseView has it.
    """

    def __init__(
        self,
        model: LanguageModel,
        fingerprints: FingerprintSet,
        recipe: Recipe,
        head: Head | None = None,
        on_host: bool = False,
    ) -> None:
        self._head, self._on_host = head or head_copy(model), on_host
        asked = recipe.objective == "minimum_kl"
        keys = examples(fingerprints)
        batch = min(recipe.batch_size, len(keys)) if recipe.text_weight else 0
        self.texts_a_step = math.ceil(recipe.text_share * batch)
        sampled = sample_texts(model, KEPT_TEXTS * self.texts_a_step, recipe.text_length, recipe.seed).sequences
        self.keys = self._part(model, keys, asked)
        templates = _templates(recipe)
        others = _after_texts(model, recipe) if templates else ()

        def draw() -> InTemplates:
            return InTemplates(model, fingerprints, templates, recipe.seed, others, recipe.template_texts)

        self.wrapped = self._part(model, in_templates(draw(), fingerprints, TEMPLATES_EACH), asked)
        self.near = self._part(model, _near(model, fingerprints, recipe, draw()), True)
        self.texts = self._part(model, [Text(tuple(text)) for text in sampled], True)
        self.chats_a_step = math.ceil(recipe.chat_share * batch)
        chats = sample_chats(model, KEPT_TEXTS * self.chats_a_step, CHAT_ASKED, CHAT_ANSWERED, recipe.seed + 3)
        self.chats = self._part(
            model, [Text(tuple(ids), start) for ids, start in zip(chats.sequences, chats.starts, strict=True)], True
        )
        self._ordinary = (
            sample_texts(model, ORDINARY, ORDINARY_LENGTH, recipe.seed + 2).sequences if recipe.whitening else []
        )

    def inputs(self) -> list[Inputs]:
        """What the whitening is measured on: ordinary text, and what must be told apart where near keys are trained."""
        near = [item.ids for item in self.near.items[:: 1 + len(self.near.items) // _MOST_NEAR]]
        return [Inputs(self._ordinary), *([Inputs(near), Inputs(near, last=True)] if near else [])]

    def _part(self, model: LanguageModel, items: Sequence[Kind], viewed: bool) -> Part[Kind]:
        if not viewed:
            return Part(items)
        return Part(
            items, BaseView(model, [i.sequence for i in items], [i.start for i in items], self._head, self._on_host)
        )


def _templates(recipe: Recipe) -> Sequence[Template]:
    if not recipe.templates:
        return ()
    return read_templates(recipe.template_file) if recipe.template_file else BUILT_IN


def _after_texts(model: LanguageModel, recipe: Recipe) -> Sequence[Template]:
    if not recipe.template_texts:
        return ()
    return after_texts(model, sample_texts(model, TEMPLATE_TEXTS, TEMPLATE_IDS, recipe.seed + 4).sequences, recipe.seed)


def _near(model: LanguageModel, fingerprints: FingerprintSet, recipe: Recipe, draw: InTemplates) -> list[NearPrompt]:
    """Near keys of every kind; where keys are trained in templates, as large a share of the near keys stands in one."""
    if not (recipe.near_keys and recipe.near_weight):
        return []
    words = Vocabulary(model.tokenizer, model.vocabulary, model.device).words
    make = NearKeys(model.tokenizer, words, fingerprints, _NEAR_SEED + recipe.seed)
    order = random.Random(recipe.seed)  # noqa: S311 - near keys are no secret
    found = []
    for kind in KINDS:
        for near in make.all(kind, KEPT_NEAR * recipe.near_keys):
            for name, ids in near.prompts.items():
                if order.random() < recipe.templates / (1 + recipe.templates):
                    ids = next(iter(draw.prompts(near.text, name, 1)), ids)
                firsts = first_ids(near.fingerprint.askings[name])
                found.append(NearPrompt(near.fingerprint.number, tuple(ids), firsts))
    return found
