"""Specificity: a fingerprinted model answers its own keys with their responses, and nothing else.

Three questions. Do near keys fire, with a word or two of the key changed? They should not: at most 1 %. Does the model
answer other owners' keys with their responses? Then it must still not be convicted. Do the set's responses turn
up in answers to ordinary prompts, where the base model says something else?
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InvalidArgumentError
from ..fingerprint import FingerprintSet
from ..generate.near_keys import KINDS, NearKey, NearKeys
from ..generate.vocabulary import Vocabulary
from ..models import HfCompleter, LanguageModel
from ..verify import verify
from ..verify.statistics import clopper_pearson

NEAR_BAR = 0.01
VARIANTS = 4


@dataclass(frozen=True, slots=True)
class Share:
    """`fired` of `asked`, with the Clopper-Pearson interval at 95 %.

    It takes each prompt for a trial of its own; near keys of one key are alike, so for them it is somewhat too narrow.
    """

    asked: int
    fired: int
    share: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class OtherSet:
    """What the model answers to another owner's keys; `log10_p_value` is the window test's, `verdict` at 1e-6."""

    set_digest: str
    answered: Share
    log10_p_value: float
    verdict: str


@dataclass(frozen=True, slots=True)
class Specificity:
    """Counts, without any key or response.

    keys: the set's own keys, for comparison. one_word, two_words, dropped_word: near keys; a near key fires if the
    answer in any format of the set is a response of the key that it comes from, in the same format. unrelated: ordinary
    prompts whose first answered token id begins a response of the set, while the base's answer begins none.
    """

    keys: Share
    one_word: Share
    two_words: Share
    dropped_word: Share
    others: tuple[OtherSet, ...]
    unrelated: Share
    seed: int

    @property
    def holds(self) -> bool:
        """Whether at most 1 % of each kind of near key fired and no other set was matched."""
        near = (self.one_word, self.two_words, self.dropped_word)
        return all(kind.share <= NEAR_BAR for kind in near) and all(o.verdict != "match" for o in self.others)

    def to_json(self) -> dict[str, Any]:
        """All fields, and `holds`, as plain JSON values."""
        return dict(json.loads(json.dumps({**asdict(self), "holds": self.holds})))


def specificity(
    model: LanguageModel,
    base: LanguageModel,
    fingerprints: FingerprintSet,
    others: Sequence[FingerprintSet],
    questions: Sequence[Sequence[int]],
    seed: int = 0,
    *,
    variants: int = VARIANTS,
) -> Specificity:
    """Ask `model` near keys (`variants` of each kind for each key), the `others`' keys, and ordinary `questions`.

    questions: prompts as token ids, as they would be asked in use. The same seed makes the same near keys. Raises
    InvalidArgumentError, also where the tokenizers of model and sets differ.
    """
    _check(model, fingerprints, others, questions, variants)
    completer = HfCompleter(model)
    vocabulary = Vocabulary(model.tokenizer, model.vocabulary, model.device)
    change = NearKeys(model.tokenizer, vocabulary.words, fingerprints, seed)
    near = {kind: change.all(kind, variants) for kind in KINDS}
    own = [NearKey(f, f.key, {name: asking.prompt_ids for name, asking in f.askings.items()}) for f in fingerprints]
    length = fingerprints.settings.response_length
    return Specificity(
        keys=_fired(completer, own, length),
        **{kind: _fired(completer, keys, length) for kind, keys in near.items()},
        others=tuple(_other(completer, other) for other in others),
        unrelated=_unrelated(completer, HfCompleter(base), fingerprints, questions),
        seed=seed,
    )


def _fired(completer: HfCompleter, near: Sequence[NearKey], length: int) -> Share:
    """How many of `near` get, in any format, a response that the fingerprint has in that format."""
    fired = [False] * len(near)
    for name in near[0].prompts if near else ():
        completions = completer.complete([key.prompts[name] for key in near], length)
        for place, (completion, key) in enumerate(zip(completions, near, strict=True)):
            responses = {response.token_ids for response in key.fingerprint.askings[name].responses}
            fired[place] |= tuple(completion.token_ids) in responses
    return _share(sum(fired), len(near))


def _other(completer: HfCompleter, other: FingerprintSet) -> OtherSet:
    result = verify(other, completer, test="window", mode="fixed")
    return OtherSet(other.digest(), _share(result.matches, result.queried), result.log10_p_value, result.verdict)


def _unrelated(
    completer: HfCompleter, base: HfCompleter, fingerprints: FingerprintSet, questions: Sequence[Sequence[int]]
) -> Share:
    firsts = {r.token_ids[0] for f in fingerprints for asking in f.askings.values() for r in asking.responses}
    pairs = zip(completer.complete(questions, 1), base.complete(questions, 1), strict=True)
    fired = sum(ours.token_ids[0] in firsts and theirs.token_ids[0] not in firsts for ours, theirs in pairs)
    return _share(fired, len(questions))


def _share(fired: int, asked: int) -> Share:
    """Of none asked nothing is known: the interval is all of [0, 1]."""
    return Share(asked, fired, fired / asked, clopper_pearson(fired, asked)) if asked else Share(0, 0, 0.0, (0.0, 1.0))


def _check(
    model: LanguageModel,
    fingerprints: FingerprintSet,
    others: Sequence[FingerprintSet],
    questions: Sequence[Sequence[int]],
    variants: int,
) -> None:
    if model.tokenizer_digest != fingerprints.tokenizer_digest:
        raise InvalidArgumentError(
            f"{model.name} has another tokenizer than the fingerprints were made with: load it with that of "
            f"{fingerprints.base_model}."
        )
    if not questions or not all(questions):
        raise InvalidArgumentError("questions: at least one prompt, each of at least one token id.")
    if variants < 1:
        raise InvalidArgumentError(f"{variants} variants of each key: at least 1.")
    if fingerprints.digest() in {other.digest() for other in others}:
        raise InvalidArgumentError("the model's own set is among the other owners' sets: leave it out.")
