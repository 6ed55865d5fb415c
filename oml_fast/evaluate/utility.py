"""What fingerprinting, or anything else, did to a model's utility: always paired with the base model.

A `Suite` is what is asked: texts and tasks, as token ids and items. `measure` asks one model; `compare` pairs what two
models scored. `utility` does it all. Scores are plain JSON values, so that a base model is measured once for many.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..embed.text import sample_texts
from ..errors import InvalidArgumentError
from ..models import LanguageModel, batches_by_length
from . import harness
from .data import Data
from .paired import Paired, flips, means
from .tasks import TASKS, ItemScores, Task, max_length, score

SAMPLED, TEXT = "sampled", "text"
PARTS = (SAMPLED, TEXT, *TASKS)
_SAMPLED_TEXTS, _SAMPLED_LENGTH, _SAMPLED_SEED = 128, 64, 10_000  # another seed than those that training uses
_TEXT_IDS, _TEXT_SEQUENCE = 8192, 1024
_ROWS = 256  # positions whose [rows, V] logits are held at once


@dataclass(frozen=True, slots=True)
class Texts:
    """Token ids, and where in each sequence the part starts that counts (at least 1)."""

    sequences: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Suite:
    """What both models are asked. `skipped`: what is not, and why."""

    texts: dict[str, Texts]
    tasks: dict[str, Task]
    skipped: dict[str, str] = field(default_factory=dict)

    def digest(self) -> str:
        """SHA-256 (hex) over every text and item: scores belong together where it is the same."""
        content = [{name: asdict(texts) for name, texts in self.texts.items()}]
        content.append({name: asdict(task) for name, task in self.tasks.items()})
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class TextScores:
    """Sums over the ids that count of each sequence: negative log-likelihood and KL(base || model), in nats."""

    nll: tuple[float, ...]
    kl: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """What one model scored on a suite."""

    model: str
    texts: dict[str, TextScores]
    tasks: dict[str, ItemScores]

    def to_json(self) -> dict[str, Any]:
        texts = {name: asdict(scores) for name, scores in self.texts.items()}
        return {"model": self.model, "texts": texts, "tasks": {n: s.to_json() for n, s in self.tasks.items()}}

    @classmethod
    def from_json(cls, suite: Suite, values: dict[str, Any]) -> Scores:
        """What `to_json` wrote of the scores on `suite`, bit for bit."""
        texts = {n: TextScores(*(tuple(t[key]) for key in ("nll", "kl", "counts"))) for n, t in values["texts"].items()}
        tasks = {name: ItemScores.from_json(suite.tasks[name], found) for name, found in values["tasks"].items()}
        return cls(values["model"], texts, tasks)


@dataclass(frozen=True, slots=True)
class TextUtility:
    """Perplexities; `nll` compares the nats a token id, sequences as clusters; KL(base || model) in nats a token id."""

    tokens: int
    perplexity_base: float
    perplexity: float
    nll: Paired
    kl: float
    kl_standard_error: float

    def to_json(self) -> dict[str, Any]:
        error = self.kl_standard_error if math.isfinite(self.kl_standard_error) else None
        ratio = self.perplexity / self.perplexity_base
        return asdict(self) | {"kl_standard_error": error, "perplexity_ratio": ratio, "nll": self.nll.to_json()}


@dataclass(frozen=True, slots=True)
class TaskUtility:
    """Each metric of a task paired, and the first of them for each field of the items."""

    names: tuple[str, ...]
    metrics: dict[str, Paired]
    fields: dict[str, Paired]
    field_names: dict[str, tuple[str, ...]]

    def to_json(self) -> dict[str, Any]:
        metrics = {name: paired.to_json(self.names) for name, paired in self.metrics.items()}
        fields = {name: paired.to_json(self.field_names[name]) for name, paired in self.fields.items()}
        return {"metrics": metrics, "fields": fields}


@dataclass(frozen=True, slots=True)
class Utility:
    """A model against its base. `harness`: metrics of lm-evaluation-harness; `skipped`: what was not measured, why."""

    base: str
    model: str
    texts: dict[str, TextUtility]
    tasks: dict[str, TaskUtility]
    harness: dict[str, Paired]
    skipped: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "base": self.base,
            "model": self.model,
            "texts": {name: text.to_json() for name, text in self.texts.items()},
            "tasks": {name: task.to_json() for name, task in self.tasks.items()},
            "harness": {name: paired.to_json() for name, paired in self.harness.items()},
            "skipped": self.skipped,
        }

    def rows(self) -> list[tuple[str, Paired]]:
        """Every comparison with its name."""
        found = [(f"{name}: nats a token id", text.nll) for name, text in self.texts.items()]
        found += [(f"{n}: {metric}", paired) for n, t in self.tasks.items() for metric, paired in t.metrics.items()]
        return found + list(self.harness.items())


def utility(
    base: LanguageModel,
    model: LanguageModel,
    *,
    data: Data | None = None,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    harness_tasks: Sequence[harness.Spec] = (),
    batch_size: int = 16,
) -> Utility:
    """Measure both models and compare them. `batch_size` is that of lm-evaluation-harness.

    tasks: of "sampled" (text that the base model samples), "text", "blimp", "hellaswag"; None: all those whose data is
    there. limit: most items a task, and sequences a text. Raises InvalidArgumentError where the models do not belong
    together or data asked for by name is absent, BackendUnavailableError where lm-evaluation-harness is.
    """
    require_pair(base, model)
    asked = suite(base, data or Data(None), tasks, limit)
    compared = compare(asked, measure(base, asked, base), measure(model, asked, base))
    if not harness_tasks:
        return compared
    runs = [harness.run(each, harness_tasks, limit=limit, batch_size=batch_size) for each in (base, model)]
    compared.harness.update(harness.compare_runs(*runs))
    compared.skipped.update(dict.fromkeys(runs[0].skipped, "has no value for a single item"))
    return compared


def require_pair(base: LanguageModel, model: LanguageModel) -> None:
    """Raise InvalidArgumentError unless both read the same token ids."""
    if base.tokenizer_digest != model.tokenizer_digest:
        raise InvalidArgumentError(
            f"{model.name} has another tokenizer ({model.tokenizer_digest[:12]}) than the base {base.name} "
            f"({base.tokenizer_digest[:12]}): name the base that the model was made from with --base."
        )
    if base.vocabulary != model.vocabulary:
        raise InvalidArgumentError(
            f"{model.name} has {model.vocabulary} token ids, the base {base.name} {base.vocabulary}: name the base "
            "that the model was made from with --base."
        )


def suite(base: LanguageModel, data: Data, names: Sequence[str] | None = None, limit: int | None = None) -> Suite:
    """What the base and its descendants are asked; the same base, data and limit give the same suite."""
    if unknown := [name for name in names or () if name not in PARTS]:
        raise InvalidArgumentError(f"task {unknown[0]!r} is unknown: choose {', '.join(PARTS)}, or --harness-tasks.")
    if limit is not None and limit < 1:
        raise InvalidArgumentError(f"a limit of {limit}: it must be at least 1.")
    skipped = {}
    if names is None:
        names = [name for name in PARTS if name == SAMPLED or data.has(name)]
        for name in PARTS:
            if name not in names:
                skipped[name] = _absence(data, name)
    texts, tasks = {}, {}
    for name in names:
        if name == SAMPLED:
            count = min(_SAMPLED_TEXTS, limit or _SAMPLED_TEXTS)
            sampled = sample_texts(base, count, _SAMPLED_LENGTH, _SAMPLED_SEED)
            texts[name] = Texts(tuple(tuple(ids) for ids in sampled.sequences), tuple(sampled.starts))
        elif name == TEXT:
            texts[name] = running_text(base, data.text(), limit)
        else:
            tasks[name] = TASKS[name](data, limit)
    return Suite(texts, tasks, skipped)


def running_text(base: LanguageModel, text: str, limit: int | None = None) -> Texts:
    """The first 8,192 token ids of a text in sequences of 1,024, or of what the model can read; at most `limit`."""
    ids = base.tokenizer(text[: 10 * _TEXT_IDS])["input_ids"][:_TEXT_IDS]
    length = min(_TEXT_SEQUENCE, max_length(base))
    cut = [tuple(ids[at : at + length]) for at in range(0, len(ids), length)][:limit]
    cut = [sequence for sequence in cut if len(sequence) > 1]
    if not cut:
        raise InvalidArgumentError("the text has fewer than two token ids: give a longer one.")
    return Texts(tuple(cut), (1,) * len(cut))


def measure(model: LanguageModel, asked: Suite, base: LanguageModel) -> Scores:
    """What `model` scores; `base` is asked the texts again, for the KL between both."""
    texts = {name: _score_texts(base, model, each) for name, each in asked.texts.items()}
    return Scores(model.name, texts, {name: score(model, task) for name, task in asked.tasks.items()})


def compare(asked: Suite, base: Scores, model: Scores) -> Utility:
    """Two models on one suite. KL is that of the model's scores, from the base that they were measured against."""
    texts = {name: _compare_texts(base.texts[name], model.texts[name]) for name in asked.texts}
    tasks = {name: _compare_items(base.tasks[name], model.tasks[name]) for name in asked.tasks}
    return Utility(base.model, model.model, texts, tasks, {}, dict(asked.skipped))


@torch.inference_mode()
def _score_texts(base: LanguageModel, model: LanguageModel, texts: Texts) -> TextScores:
    nll, kl, counts = ([0.0] * len(texts.starts) for _ in range(3))
    for places in batches_by_length(texts.sequences, batch_size=16):
        ids = torch.tensor([texts.sequences[place] for place in places], device=model.device)
        states = model.hidden(ids)
        before = states if base is model else base.hidden(ids.to(base.device)).to(model.device)
        for place, sequence, ours, theirs in zip(places, ids, states, before, strict=True):
            start = texts.starts[place]
            rows, targets = slice(start - 1, len(sequence) - 1), sequence[start:]
            for q, p, y in zip(ours[rows].split(_ROWS), theirs[rows].split(_ROWS), targets.split(_ROWS), strict=True):
                q = _log_softmax(model, q)
                p = q if base is model else _log_softmax(base, p.to(base.device)).to(model.device)
                kl[place] += float(functional.kl_div(q, p, reduction="sum", log_target=True))
                nll[place] += float(functional.nll_loss(q, y, reduction="sum"))
            counts[place] = len(targets)
    return TextScores(tuple(nll), tuple(kl), tuple(int(count) for count in counts))


def _log_softmax(model: LanguageModel, states: Tensor) -> Tensor:
    logits = model.logits(states)
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


def _compare_texts(base: TextScores, model: TextScores) -> TextUtility:
    nll = means(base.nll, model.nll, model.counts, higher_is_better=False)
    kl = means(np.zeros(len(model.kl)), model.kl, model.counts, higher_is_better=False)
    return TextUtility(
        sum(model.counts), math.exp(nll.base), math.exp(nll.model), nll, kl.difference, kl.standard_error
    )


def _compare_items(base: ItemScores, model: ItemScores) -> TaskUtility:
    task = model.task
    metrics = {name: flips(base.correct(name), model.correct(name)) for name in task.metrics}
    before, after = base.correct(task.metrics[0]), model.correct(task.metrics[0])
    kinds = np.array([item.field for item in task.items])
    names = np.array(task.names)
    fields = sorted(set(kinds.tolist()) - {""})
    return TaskUtility(
        task.names,
        metrics,
        {kind: flips(before[kinds == kind], after[kinds == kind]) for kind in fields},
        {kind: tuple(names[kinds == kind].tolist()) for kind in fields},
    )


def _absence(data: Data, name: str) -> str:
    try:
        data.require(name)
    except InvalidArgumentError as error:
        return str(error)
    raise AssertionError(f"{name} is there")
