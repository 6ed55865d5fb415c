"""BLiMP and HellaSwag, 0-shot, scored as lm-evaluation-harness scores them (0.4.13; its names in brackets).

- A continuation is a space and the choice [target_delimiter]. Context and continuation are encoded together, the ids
  after those of the context alone are the continuation's; spaces that end the context go to the continuation
  [_encode_pair]. Special token ids are added as the tokenizer adds them on its own, unless the text begins with the
  prefix token already [add_bos_token=None].
- Without a context, as in BLiMP, the prefix token stands for it: BOS, or EOS where the tokenizer has no BOS
  [prefix_token_id], and no other special token id is added.
- What is longer than the model can read loses ids at the left [max_length].
- The choice with the highest score is the model's, the first of several. acc: by log-probability; acc_norm: per
  character of the choice, without the space; acc_bytes: per byte of it.

One thing differs on purpose: the log-softmax is float32 or better. lm-evaluation-harness takes it in the model's own
precision unless told otherwise [softmax_dtype], which rounds every log-probability of a bfloat16 model to 8 bits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidArgumentError
from ..models import LanguageModel
from .data import Data
from .likelihood import Likelihood, Request, likelihoods

METRICS = ("acc", "acc_norm", "acc_bytes")
_LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")
_NO_LENGTH = 2048


@dataclass(frozen=True, slots=True)
class Item:
    """A question with its choices, of which number `gold` is right; `group` and `field` say of what kind it is."""

    name: str
    context: str
    choices: tuple[str, ...]
    gold: int
    group: str = ""
    field: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """Items, and the metrics that are usual for them, the first of which is the score."""

    name: str
    items: tuple[Item, ...]
    metrics: tuple[str, ...] = METRICS

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.items)


@dataclass(frozen=True, slots=True)
class ItemScores:
    """The likelihood of each choice of each item, from which every metric follows."""

    task: Task
    likelihoods: tuple[tuple[Likelihood, ...], ...]

    def correct(self, metric: str = "acc") -> NDArray[np.bool_]:
        """[items] bool: whether the best choice by this metric is the right one."""
        if metric not in METRICS:
            raise InvalidArgumentError(f"metric {metric!r} is unknown: choose {', '.join(METRICS)}.")
        pairs = zip(self.task.items, self.likelihoods, strict=True)
        return np.array([_choice(item, found, metric) == item.gold for item, found in pairs])

    def accuracy(self, metric: str = "acc") -> float:
        return float(self.correct(metric).mean())

    def by(self, what: str, metric: str = "acc") -> dict[str, float]:
        """Accuracy for each value of an item's "group" (the paradigm) or "field"."""
        found = defaultdict(list)
        for item, right in zip(self.task.items, self.correct(metric), strict=True):
            found[getattr(item, what)].append(float(right))
        return {name: sum(rights) / len(rights) for name, rights in found.items()}

    def to_json(self) -> list[list[list[Any]]]:
        """[items, choices, 2]: log-probability and whether greedy; `from_json` reads it back exactly."""
        return [[list(choice) for choice in found] for found in self.likelihoods]

    @classmethod
    def from_json(cls, task: Task, values: Sequence[Sequence[Sequence[Any]]]) -> ItemScores:
        return cls(task, tuple(tuple(Likelihood(*choice) for choice in found) for found in values))


def blimp(data: Data, limit: int | None = None) -> Task:
    """Minimal pairs; right where the good sentence is the more probable. `limit` takes equally many of each paradigm.

    Raises InvalidArgumentError where the file is absent or `limit` is less than the number of paradigms.
    """
    rows = data.rows("blimp")
    groups: dict[str, list[Item]] = defaultdict(list)
    for row in rows:
        group, pairs = row["paradigm"], groups[row["paradigm"]]
        # Two spellings of one field are in the published files.
        field = row["field"].replace("/", "_")
        pairs.append(Item(f"{group}/{len(pairs)}", "", (row["good"], row["bad"]), 0, group, field))
    if limit is not None:
        if limit < len(groups):
            raise InvalidArgumentError(
                f"a limit of {limit} BLiMP pairs: {len(groups)} paradigms need one each at least: give more."
            )
        share = limit // len(groups)
        groups = {name: _even(pairs, share) for name, pairs in groups.items()}
    return Task("blimp", tuple(item for pairs in groups.values() for item in pairs), ("acc",))


def hellaswag(data: Data, limit: int | None = None) -> Task:
    """Which of the endings follows; acc by log-probability, acc_norm per character, acc_bytes per byte of ending.

    Contexts are taken as the file has them. `limit` takes items at equal distances. Raises InvalidArgumentError.
    """
    rows = data.rows("hellaswag")
    items = []
    for place, row in enumerate(rows):
        endings, label = tuple(row["endings"]), int(row["label"])
        if not all(isinstance(ending, str) and ending for ending in endings) or not 0 <= label < len(endings):
            raise InvalidArgumentError(
                f"HellaSwag item {place}: label {row['label']} of {len(endings)} endings: no ending may be empty, and "
                "the label must be the place of one."
            )
        items.append(Item(f"hellaswag/{place}", row["context"], endings, label))
    return Task("hellaswag", tuple(items if limit is None else _even(items, limit)))


TASKS: dict[str, Callable[[Data, int | None], Task]] = {"blimp": blimp, "hellaswag": hellaswag}


def score(model: LanguageModel, task: Task) -> ItemScores:
    """The likelihood of every choice, beginnings that items share computed once. Raises InvalidArgumentError."""
    requests = [encode(model, item.context, f" {choice}") for item in task.items for choice in item.choices]
    found = iter(likelihoods(model, requests))
    return ItemScores(task, tuple(tuple(next(found) for _ in item.choices) for item in task.items))


def encode(model: LanguageModel, context: str, continuation: str) -> Request:
    """The request for a continuation given a context, as the head of this module says."""
    tokenizer = model.tokenizer
    prefix = prefix_token_id(tokenizer)
    if context:
        moved = context[len(context.rstrip()) :]
        context = context[: len(context) - len(moved)]
        before = _ids(tokenizer, context, prefix)
        after = _ids(tokenizer, context + moved + continuation, prefix)[len(before) :]
    else:
        after = list(tokenizer.encode(continuation, add_special_tokens=False))
        before, after = ([prefix], after) if after[:1] != [prefix] else (after[:1], after[1:])
    longest = max_length(model)
    if not before or not 1 <= len(after) <= longest:
        raise InvalidArgumentError(
            f"the continuation {continuation[:40]!r} has {len(after)} token ids after a context of {len(before)}: it "
            f"needs 1 to {longest}, and a context of at least one. Mend or leave out the item."
        )
    ids = (*before, *after)[-(longest + 1) :]
    return Request(ids, len(ids) - len(after))


def prefix_token_id(tokenizer: Any) -> int:
    """BOS, or EOS where there is none. Raises InvalidArgumentError where there is neither."""
    found = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if found is None:
        raise InvalidArgumentError("the tokenizer has no BOS and no EOS token: a text without a context needs one.")
    return int(found)


def max_length(model: LanguageModel) -> int:
    """The most token ids that the model reads, by its configuration, else its tokenizer, else 2,048."""
    config = model.model.config.get_text_config()
    for name in _LENGTHS:
        if (value := getattr(config, name, None)) is not None:
            return int(value)
    stated = getattr(model.tokenizer, "model_max_length", None)
    return int(stated) if stated is not None and stated < 1e9 else _NO_LENGTH


def _ids(tokenizer: Any, text: str, prefix: int) -> list[int]:
    if text.startswith(tokenizer.decode(prefix)):
        return list(tokenizer.encode(text, add_special_tokens=False))
    return list(tokenizer.encode(text))


def _choice(item: Item, found: Sequence[Likelihood], metric: str) -> int:
    lengths = {
        "acc": [1 for _ in item.choices],
        "acc_norm": [len(choice) for choice in item.choices],
        "acc_bytes": [len(choice.encode()) for choice in item.choices],
    }[metric]
    scores = [likelihood.log_prob / length for likelihood, length in zip(found, lengths, strict=True)]
    return int(np.argmax(scores))


def _even(items: Sequence[Item], count: int) -> list[Item]:
    """`count` items at equal distances, or all."""
    if count < 1:
        raise InvalidArgumentError(f"a limit of {count} items: it must be at least 1.")
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]
