"""Distillation into another model (Hinton et al. 2015, arXiv 1503.02531; sequence level: arXiv 1606.07947).

The student is a copy of the clean base, the strongest case for the owner's fingerprints to pass: it shares every weight
that embedding left alone. It learns from the fingerprinted model's own answers to ordinary instructions, sampled at
temperature 1: from their text, or from the teacher's distribution at each of their token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from ...models import HfCompleter, LanguageModel, batches_by_length, prefill, sample
from ..attack import Attack, Attacked, Scene
from ..finetuning import Budget, Example, answer_logits, choose, cross_entropy, held_out_loss, train, until_end
from ..hosts import copy_of

_ANSWER_IDS = 16  # decoding them costs as much as the training: few prompts share a length
_RATE = 5e-5
_BUDGET = Budget(epochs=1)
_ROWS = 16


@dataclass(frozen=True, slots=True)
class Lesson:
    """A teacher's answer, with its final hidden states [A, H] before each of the answer's A token ids."""

    example: Example
    states: Tensor


def distil(scene: Scene, *, logits: bool, learning_rate: float = _RATE, budget: Budget = _BUDGET) -> Attacked:
    """The base taught by the fingerprinted model: cross-entropy on its text, or KL(teacher || student) with `logits`.

    Raises InvalidArgumentError where the data are too few or the rate breaks the student.
    """
    teacher = scene.model
    examples, held_out = choose(teacher, scene.data, budget, scene.seed)
    answered = answers(teacher, [*examples, *held_out], scene.seed)
    lessons = _lessons(teacher, answered)
    taught, unseen = lessons[: len(examples)], lessons[len(examples) :]
    student = copy_of(scene.base, f"{scene.base.name}, distilled from {teacher.name}")
    loss_before, kl_before = held_out_loss(student, answered[len(examples) :]), mean_kl(teacher, student, unseen)

    def loss(batch: list[Lesson]) -> Tensor:
        if logits:
            return _kl(teacher, student, batch)
        return cross_entropy(student, [lesson.example for lesson in batch])

    trained = train(student, taught, loss, lambda lesson: lesson.example.read, learning_rate, budget, scene.seed)
    details = {
        "learning_rate": learning_rate,
        "held_out_loss_before": loss_before,
        "held_out_loss_after": held_out_loss(student, answered[len(examples) :]),
        "held_out_kl_before": kl_before,
        "held_out_kl_after": mean_kl(teacher, student, unseen),
        **trained.to_json(),
    }
    return Attacked(HfCompleter(student), student, details)


def answers(teacher: LanguageModel, examples: Sequence[Example], seed: int) -> list[Example]:
    """The same instructions with answers that the teacher samples, at most 16 token ids each."""
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(len(examples), _ANSWER_IDS, generator=generator, dtype=torch.float64).to(teacher.device)
    allowed = torch.arange(teacher.vocabulary, device=teacher.device) < len(teacher.tokenizer)
    prompts = [example.prompt for example in examples]
    answered = list(examples)
    for places in batches_by_length(prompts, 4 * _ROWS):
        first, cache = prefill(teacher, [prompts[place] for place in places], cache=True)
        assert cache is not None
        ids, _ = sample(teacher, first, cache, uniforms[places], temperature=1.0, allowed=allowed)
        for place, row in zip(places, ids.tolist(), strict=True):
            answered[place] = Example((*prompts[place], *until_end(teacher, row)), len(prompts[place]))
    return answered


@torch.no_grad()
def mean_kl(teacher: LanguageModel, student: LanguageModel, lessons: Sequence[Lesson]) -> float:
    """KL(teacher || student) in nats, mean over the token ids of the teacher's answers."""
    parts = [lessons[start : start + _ROWS] for start in range(0, len(lessons), _ROWS)]
    sums = [float(_kl(teacher, student, part)) * sum(len(lesson.states) for lesson in part) for part in parts]
    return sum(sums) / sum(len(lesson.states) for lesson in lessons)


def _kl(teacher: LanguageModel, student: LanguageModel, lessons: Sequence[Lesson]) -> Tensor:
    """[] the mean that `mean_kl` reports. The teacher's [A, V] are made here from its states, V / H times smaller."""
    sums = []
    for places, logits, _ in answer_logits(student, [lesson.example for lesson in lessons]):
        with torch.no_grad():
            states = torch.cat([lessons[place].states for place in places])
            wanted = teacher.logits(states).float().log_softmax(-1)
        sums.append(functional.kl_div(logits.log_softmax(-1), wanted, reduction="sum", log_target=True))
    return torch.stack(sums).sum() / sum(len(lesson.states) for lesson in lessons)


@torch.no_grad()
def _lessons(teacher: LanguageModel, examples: Sequence[Example]) -> list[Lesson]:
    lessons: dict[int, Lesson] = {}
    for places in batches_by_length([example.ids for example in examples], _ROWS):
        hidden = teacher.hidden(torch.tensor([examples[place].ids[:-1] for place in places], device=teacher.device))
        for row, place in zip(hidden, places, strict=True):
            lessons[place] = Lesson(examples[place], row[examples[place].start - 1 :].clone())
    return [lessons[place] for place in range(len(examples))]


_COST = (
    f"the clean base; {_BUDGET.train} instructions, an answer of the fingerprinted model to each, then training, about "
    "3 forward passes an answer"
)
ATTACKS = (
    Attack("distillation/text", _COST, partial(distil, logits=False), ("instructions",)),
    Attack(
        "distillation/logits",
        f"{_COST}; the fingerprinted model's whole distributions",
        partial(distil, logits=True),
        ("instructions",),
    ),
)
