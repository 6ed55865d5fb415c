"""Ordinary questions, answered through the same host as the keys: what an attack costs the attacker's own users."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from ..completer import Completer
from ..embed.text import sample_texts
from ..errors import InvalidArgumentError
from ..models import HfCompleter, LanguageModel, batches_by_length
from .data import Data
from .finetuning import prompt_ids

ANSWER_IDS = 16
_MOST_IDS = 112  # of a question: short ones are cheap, and there are enough


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """How well a host answers ordinary questions.

    f1: mean over questions of the F1 of words between answer and reference [SQuAD, arXiv 1606.05250], with its standard
    error. changed: share of
    answers that differ from the reference host's. refused: share left unanswered. perplexity: of the answers' token
    ids under the base model, which judges how natural they are; None where nothing was answered.
    """

    f1: float
    f1_standard_error: float
    changed: float
    refused: float
    perplexity: float | None


def questions_source(data: Data) -> str:
    """Where the questions come from, for reports."""
    return "held-out instructions" if data.has("instructions") else "sampled questions"


class Questions:
    """`count` ordinary questions with reference answers, and the base model as judge of the answers.

    With instruction data, questions and references are its held-out pairs; without, the questions are sampled, and the
    references are the base model's own answers. In the chat template where there is one.
    """

    def __init__(self, base: LanguageModel, data: Data, count: int = 40) -> None:
        self._base = base
        if data.has("instructions"):
            self.prompts, self._references = _from_data(base, data, count)
        else:
            texts = sample_texts(base, 2 * count, 8, seed=2)
            self.prompts = [text[:start] for text, start in zip(*texts, strict=True)][1::2]
            self._references = [base.tokenizer.decode(ids) for ids in self._cut(_greedy_ids(base, self.prompts))]
        self._reference_ids: list[list[int]] | None = None

    def score(self, completer: Completer, said: Sequence[int] = ()) -> AnswerScores:
        """Ask them all; `said` are ids that the host itself puts before every answer that it does not refuse.

        The first completer scored is the one that `changed` compares with.
        """
        answers = self._cut([list(c.token_ids) if c else [] for c in completer.complete(self.prompts, ANSWER_IDS)])
        answers = [[*said, *ids] if ids else [] for ids in answers]
        if self._reference_ids is None:
            self._reference_ids = answers
        texts = [self._base.tokenizer.decode(ids) for ids in answers]
        f1 = np.array([word_f1(answer, wanted) for answer, wanted in zip(texts, self._references, strict=True)])
        count = len(answers)
        return AnswerScores(
            f1=float(f1.mean()),
            f1_standard_error=float(f1.std(ddof=1) / math.sqrt(count)) if count > 1 else 0.0,
            changed=sum(a != b for a, b in zip(answers, self._reference_ids, strict=True)) / count,
            refused=sum(not ids for ids in answers) / count,
            perplexity=self._perplexity(answers),
        )

    def _cut(self, answers: Sequence[list[int]]) -> list[list[int]]:
        """Each answer up to its end, which is not part of it."""
        ends = [next((place for place, i in enumerate(ids) if i in self._base.end_ids), len(ids)) for ids in answers]
        return [ids[:end] for ids, end in zip(answers, ends, strict=True)]

    @torch.inference_mode()
    def _perplexity(self, answers: Sequence[list[int]]) -> float | None:
        places = [place for place, ids in enumerate(answers) if ids]
        sequences = [[*self.prompts[place], *answers[place]] for place in places]
        nll, count = 0.0, 0
        for batch in batches_by_length(sequences, 16):
            hidden = self._base.hidden(torch.tensor([sequences[i] for i in batch], device=self._base.device))
            for row, i in enumerate(batch):
                ids = answers[places[i]]
                logits = self._base.logits(hidden[row, -len(ids) - 1 : -1]).float()
                targets = torch.tensor(ids, device=logits.device)
                nll += float(functional.cross_entropy(logits, targets, reduction="sum"))
                count += len(ids)
        return math.exp(nll / count) if count else None


def word_f1(answer: str, reference: str) -> float:
    """F1 in [0, 1] of the words, lower case, in any order."""
    words, wanted = Counter(answer.lower().split()), Counter(reference.lower().split())
    common = sum((words & wanted).values())
    return 2 * common / (sum(words.values()) + sum(wanted.values())) if common else 0.0


def _from_data(base: LanguageModel, data: Data, count: int) -> tuple[list[list[int]], list[str]]:
    """Held-out questions, no two with the same reference, or templates would be most of them.

    Of the lengths that most of them have: what is equally long is answered in one batch.
    """
    by_length: dict[int, list[tuple[list[int], str]]] = defaultdict(list)
    references: set[str] = set()
    for instruction, output in data.questions():
        ids = prompt_ids(base, instruction)
        if output and output.lower() not in references and len(ids) <= _MOST_IDS:
            references.add(output.lower())
            by_length[len(ids)].append((ids, output))
    if not by_length:
        raise InvalidArgumentError(
            f"{data.require('instructions')}: none of its held-out instructions has at most {_MOST_IDS} token ids and "
            "an answer: give shorter ones, or another folder with --data."
        )
    lengths = sorted(by_length, key=lambda length: (-len(by_length[length]), length))
    chosen = [pair for length in lengths for pair in by_length[length]][:count]
    return [ids for ids, _ in chosen], [output for _, output in chosen]


def _greedy_ids(model: LanguageModel, prompts: list[list[int]]) -> list[list[int]]:
    return [list(c.token_ids) for c in HfCompleter(model).complete(prompts, ANSWER_IDS)]
