"""Any task of lm-evaluation-harness (the extra `eval`) through its Python API, compared item by item with the base.

What the harness reports for a model is a mean and its standard error. The scores of the single items, which it logs,
say far more about a pair of models: they go into the same paired comparison as our own tasks.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import BackendUnavailableError, InvalidArgumentError
from ..models import LanguageModel
from .paired import Paired, compare, means
from .tasks import Task

# These are logged as log-likelihoods, alone or with the number of words or bytes.
_LIKELIHOODS = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")

Spec = str | dict[str, Any]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of one task: [items] values, of `counts` parts each, and which items they are."""

    items: tuple[str, ...]
    values: tuple[float, ...]
    counts: tuple[float, ...]
    higher_is_better: bool


@dataclass(frozen=True, slots=True)
class HarnessScores:
    """Metrics by "task/metric", or "task/metric,filter" where a filter is named; the items as the harness logged them.

    Perplexities are kept as negative log-likelihoods (nats a word, byte or item). `skipped` names the metrics that have
    no value for a single item.
    """

    version: str
    metrics: dict[str, Metric]
    samples: dict[str, list[dict[str, Any]]]
    skipped: tuple[str, ...]


def run(
    model: LanguageModel, tasks: Sequence[Spec], *, limit: int | None = None, batch_size: int = 16
) -> HarnessScores:
    """Run tasks given by name, by the path of a YAML file, or as a configuration; `limit` takes the first items.

    The log-softmax is float32 or better. The harness seeds the global generators, for every model alike. Raises
    BackendUnavailableError where it is not installed, InvalidArgumentError where a task or its data cannot be had.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise BackendUnavailableError("lm-evaluation-harness is not installed: pip install 'oml_fast[eval]'.")
    if not tasks:
        raise InvalidArgumentError("no task of lm-evaluation-harness named: give at least one.")
    with _quiet("lm_eval"):
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        half = torch.finfo(model.dtype).bits < 32
        wrapped = HFLM(
            pretrained=model.model,
            tokenizer=copy.deepcopy(model.tokenizer),  # it may be given a padding token
            backend="causal",
            batch_size=batch_size,
            softmax_dtype=torch.float32 if half else None,
        )
        try:
            found = lm_eval.simple_evaluate(
                wrapped,
                tasks=list(tasks),
                limit=limit,
                bootstrap_iters=0,
                task_manager=TaskManager(include_defaults=any(isinstance(task, str) for task in tasks)),
            )
        except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError) as error:
            raise InvalidArgumentError(_why(tasks, error)) from error
    return _scores(found, lm_eval.__version__)


def compare_runs(base: HarnessScores, model: HarnessScores) -> dict[str, Paired]:
    """Each metric of both, paired. Raises InvalidArgumentError where they were not run on the same items."""
    if [(name, metric.items) for name, metric in base.metrics.items()] != [
        (name, metric.items) for name, metric in model.metrics.items()
    ]:
        raise InvalidArgumentError("the two runs have other tasks or items: run both with the same tasks and limit.")
    found = {}
    for name, before in base.metrics.items():
        after = model.metrics[name]
        if before.counts != after.counts or set(before.counts) != {1.0}:
            better = before.higher_is_better
            found[name] = means(before.values, after.values, before.counts, higher_is_better=better)
        else:
            found[name] = compare(before.values, after.values, higher_is_better=before.higher_is_better)
    return found


def peer(task: Task) -> dict[str, Any]:
    """Our task as a configuration of the harness, defined as the harness defines its own; the items stand in it."""
    import datasets

    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in task.metrics]
    rows = [{"query": item.context, "choices": list(item.choices), "gold": item.gold} for item in task.items]
    return {
        "task": f"oml_fast_{task.name}",
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{gold}}",
        "doc_to_choice": "choices",
        "num_fewshot": 0,
        "metric_list": metrics,
    }


def _scores(found: dict[str, Any], version: str) -> HarnessScores:
    metrics: dict[str, Metric] = {}
    skipped = set()
    for task, samples in found["samples"].items():
        rows: dict[str, dict[int, tuple[float, float]]] = defaultdict(dict)
        better = {}
        for sample in samples:
            for name in sample["metrics"]:
                label = f"{task}/{name}" + ("" if sample["filter"] == "none" else f",{sample['filter']}")
                value = _value(name, sample[name])
                if value is None:
                    skipped.add(label)
                    continue
                rows[label][sample["doc_id"]] = value
                better[label] = name not in _LIKELIHOODS and found["higher_is_better"][task].get(name) is not False
        for label, values in rows.items():
            items = sorted(values)
            parts = [values[item] for item in items]
            metrics[label] = Metric(
                tuple(f"{task}/{item}" for item in items),
                tuple(value for value, _ in parts),
                tuple(count for _, count in parts),
                better[label],
            )
    return HarnessScores(version, metrics, found["samples"], tuple(sorted(skipped)))


def _value(name: str, logged: Any) -> tuple[float, float] | None:
    """An item's value and the number of its parts, or None."""
    number = (bool, int, float)
    if isinstance(logged, number):
        return (-float(logged) if name in _LIKELIHOODS else float(logged)), 1.0
    if name in _LIKELIHOODS and isinstance(logged, tuple | list) and all(isinstance(part, number) for part in logged):
        return -float(logged[0]), float(logged[1])
    return None


def _why(tasks: Sequence[Spec], error: Exception) -> str:
    names = ", ".join(task if isinstance(task, str) else str(task.get("task")) for task in tasks)
    reason = (str(error.args[0] if error.args else "").strip() or type(error).__name__).splitlines()[0].rstrip(" .")
    return (
        f"lm-evaluation-harness cannot run {names} ({reason}): check the name; a task whose data is not on this "
        "machine needs the hub, which commands reach only with HF_HUB_OFFLINE=0."
    )


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Only errors of this logger, for a block."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
