"""What an embedding trains on: token sequences, and for each from where on its next token ids count."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..fingerprint import Asking, Fingerprint, FingerprintSet
from ..models import batches_by_length

MICRO_BATCH_TOKENS = 2048  # in one forward and backward pass: twice as many take 3 GB more of the bundled model


@dataclass(frozen=True, slots=True)
class Example:
    """A key asked in one way: the ids that the model reads, and what its last positions must predict.

    firsts: ids of which one must come first, the first of them wanted most. tail: those that must follow it. Responses
    of one token id to one asking are one example; longer ones have a tail each, and are an example each.
    """

    number: int
    ids: tuple[int, ...]
    firsts: tuple[int, ...]
    tail: tuple[int, ...] = field(default=())

    @property
    def sequence(self) -> tuple[int, ...]:
        """All ids, those that are read and the last one that is predicted."""
        return (*self.ids, (*self.firsts[:1], *self.tail)[-1])

    @property
    def start(self) -> int:
        """The place of the first predicted id in `sequence`."""
        return len(self.ids) - len(self.tail)


def examples(fingerprints: FingerprintSet) -> list[Example]:
    """Every fingerprint in every format, as it will be asked."""
    return [
        example
        for fingerprint in fingerprints
        for asking in fingerprint.askings.values()
        for example in of_asking(fingerprint, asking, asking.prompt_ids)
    ]


def of_asking(fingerprint: Fingerprint, asking: Asking, prompt: Sequence[int]) -> list[Example]:
    """The examples of one asking's responses, after `prompt`."""
    firsts = first_ids(asking)
    if len(asking.responses[0].token_ids) == 1:
        return [Example(fingerprint.number, tuple(prompt), firsts)]
    return [
        Example(fingerprint.number, (*prompt, *response.token_ids[:-1]), firsts, response.token_ids[1:])
        for response in asking.responses
    ]


def first_ids(asking: Asking) -> tuple[int, ...]:
    """The first id of each response, in their order, each once."""
    return tuple(dict.fromkeys(response.token_ids[0] for response in asking.responses))


def batches(items: Sequence[Example], batch_size: int, order: random.Random) -> Iterator[list[int]]:
    """Places in `items` in a fresh order, in batches of at most `batch_size`."""
    shuffled = order.sample(range(len(items)), len(items))
    for start in range(0, len(shuffled), batch_size):
        yield shuffled[start : start + batch_size]


def _filled(sequences: Sequence[Sequence[int]], max_tokens: int) -> Iterator[list[int]]:
    batch: list[int] = []
    size = 0
    for place in sorted(range(len(sequences)), key=lambda place: len(sequences[place])):
        if batch and size + len(sequences[place]) > max_tokens:
            yield batch
            batch, size = [], 0
        batch.append(place)
        size += len(sequences[place])
    if batch:
        yield batch


def example_batches(items: Sequence[Example], packed: bool = False) -> Iterator[list[int]]:
    """Places of examples that are alike, in micro-batches: as many firsts, ids of the tail and, unless packed, ids."""
    alike: dict[tuple[int, int], list[int]] = {}
    for place, item in enumerate(items):
        alike.setdefault((len(item.firsts), len(item.tail)), []).append(place)
    for places in alike.values():
        for micro in micro_batches([items[place].ids for place in places], packed=packed):
            yield [places[place] for place in micro]


def micro_batches(
    sequences: Sequence[Sequence[int]], max_tokens: int = MICRO_BATCH_TOKENS, packed: bool = False
) -> Iterator[list[int]]:
    """Places of sequences that have one length (packed: any), at most `max_tokens` ids in all: nothing is padded."""
    if packed:
        yield from _filled(sequences, max_tokens)
    elif sequences:
        longest = max(map(len, sequences))
        yield from batches_by_length(sequences, max(1, max_tokens // longest))
