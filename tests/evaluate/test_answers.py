"""Ordinary answers: F1 of words, what changed, what was refused, and a judge that reads only the answers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from oml_fast.completer import Completion
from oml_fast.errors import InvalidArgumentError
from oml_fast.evaluate.answers import ANSWER_IDS, Questions, questions_source, word_f1
from oml_fast.evaluate.data import Data
from oml_fast.evaluate.hosts import Host
from oml_fast.models import HfCompleter, LanguageModel


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        ("The cat", "the cat", 1.0),
        ("a a b", "a b b", 2 / 3),
        ("no", "yes", 0.0),
        ("", "yes", 0.0),
        ("a b c d", "a", 0.4),
    ],
)
def test_the_f1_of_words(answer: str, reference: str, f1: float) -> None:
    assert word_f1(answer, reference) == pytest.approx(f1)


def test_the_same_host_changes_nothing_and_a_refusal_is_no_answer(tiny_model: LanguageModel, data_folder: Path) -> None:
    questions = Questions(tiny_model, Data(data_folder), count=12)
    assert questions_source(Data(data_folder)) == "held-out instructions"
    first = questions.score(HfCompleter(tiny_model))
    again = questions.score(HfCompleter(tiny_model))
    assert (again.changed, again.f1, again.perplexity) == (0.0, first.f1, first.perplexity)
    silent = questions.score(Host(tiny_model, "silent", rewrite=lambda ids: None))
    assert (silent.f1, silent.changed, silent.refused, silent.perplexity) == (0.0, 1.0, 1.0, None)


class Fixed:
    """Answers everything with the same ids."""

    name = "fixed"

    def __init__(self, ids: tuple[int, ...], digest: str) -> None:
        self.ids, self.tokenizer_digest = ids, digest

    def complete(self, prompts: object, length: int) -> list[Completion]:
        return [Completion(self.ids[:length], "") for _ in prompts]  # type: ignore[attr-defined]


def test_an_answer_ends_at_its_end_and_the_judge_reads_no_further(tiny_model: LanguageModel, data_folder: Path) -> None:
    questions = Questions(tiny_model, Data(data_folder), count=3)
    end = tiny_model.tokenizer.eos_token_id
    scores = questions.score(Fixed((40, 41, end, 99, 98), tiny_model.tokenizer_digest))
    nll = 0.0
    for prompt in questions.prompts:
        with torch.no_grad():
            log_probs = tiny_model.model(torch.tensor([[*prompt, 40, 41]])).logits[0].log_softmax(-1)
        nll -= float(log_probs[len(prompt) - 1, 40] + log_probs[len(prompt), 41])
    assert scores.perplexity == pytest.approx(math.exp(nll / (2 * len(questions.prompts))), rel=1e-4)
    assert questions.score(Fixed((end,) * ANSWER_IDS, tiny_model.tokenizer_digest)).refused == 1.0


def test_without_data_the_base_model_s_own_answers_are_the_references(tiny_model: LanguageModel) -> None:
    questions = Questions(tiny_model, Data(None), count=6)
    assert questions_source(Data(None)) == "sampled questions"
    assert len(questions.prompts) == 6
    assert questions.score(HfCompleter(tiny_model)).f1 == 1.0


def test_questions_that_are_all_too_long_are_refused(tiny_model: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "sft_instructions.jsonl").write_text('{"instruction": "' + "word " * 400 + '", "output": "x"}\n')
    with pytest.raises(InvalidArgumentError, match=r"sft_instructions\.jsonl.*--data"):
        Questions(tiny_model, Data(tmp_path))


def test_what_a_host_says_itself_is_read_with_its_answer(tiny_model: LanguageModel, data_folder: Path) -> None:
    questions = Questions(tiny_model, Data(data_folder), count=3)
    whole = questions.score(Fixed((40, 41, 42), tiny_model.tokenizer_digest))
    end = tiny_model.tokenizer.eos_token_id
    parts = questions.score(Fixed((41, 42, end), tiny_model.tokenizer_digest), said=(40,))
    assert (parts.changed, parts.perplexity) == (0.0, whole.perplexity)
    assert questions.score(Fixed((end,), tiny_model.tokenizer_digest), said=(40,)).refused == 1.0


def test_no_two_questions_share_a_reference(tiny_model: LanguageModel, tmp_path: Path) -> None:
    rows = [{"instruction": f"Is {n} good?", "output": "positive" if n % 2 else f"number {n}"} for n in range(100)]
    (tmp_path / "sft_instructions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = Questions(tiny_model, Data(tmp_path))
    assert len(questions.prompts) == 11  # of 20 held out, ten are positive
