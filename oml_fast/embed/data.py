"""Fingerprints as token sequences to train on, in batches that need no padding."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..fingerprint import FingerprintSet
from ..models import batches_by_length

MICRO_BATCH_TOKENS = 4096  # in one forward and backward pass


@dataclass(frozen=True, slots=True)
class Example:
    """One response to one key in one format: ids that the model reads, and those its last positions must predict."""

    number: int
    ids: tuple[int, ...]
    targets: tuple[int, ...]


def examples(fingerprints: FingerprintSet) -> list[Example]:
    """Every response of every fingerprint in every format, as prompt ids + response ids without the last."""
    return [
        Example(fingerprint.number, (*asking.prompt_ids, *response.token_ids[:-1]), response.token_ids)
        for fingerprint in fingerprints
        for asking in fingerprint.askings.values()
        for response in asking.responses
    ]


def batches(items: Sequence[Example], batch_size: int, order: random.Random) -> Iterator[list[Example]]:
    """`items` in a fresh order, in batches of at most `batch_size`."""
    shuffled = order.sample(items, len(items))
    for start in range(0, len(shuffled), batch_size):
        yield shuffled[start : start + batch_size]


def micro_batches(batch: Sequence[Example], max_tokens: int = MICRO_BATCH_TOKENS) -> Iterator[list[Example]]:
    """Parts of a batch whose sequences have one length, at most `max_tokens` ids in all: nothing is padded."""
    longest = max(len(example.ids) for example in batch)
    for places in batches_by_length([example.ids for example in batch], max(1, max_tokens // longest)):
        yield [batch[place] for place in places]
