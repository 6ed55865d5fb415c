"""The attackers' training loop: which examples, what is read and predicted, and that it learns the same each time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from oml_fast.errors import InvalidArgumentError
from oml_fast.evaluate.data import Data
from oml_fast.evaluate.finetuning import (
    Budget,
    Example,
    answer_ids,
    choose,
    cross_entropy,
    held_out_loss,
    prompt_ids,
    rate,
    supervise,
    train,
    until_end,
)
from oml_fast.models import LanguageModel, load

BUDGET = Budget(train=24, held_out=8, max_ids=40, epochs=2, batch_size=4)
END = 2  # of the tiny tokenizer


def write(folder: Path, pairs: list[tuple[str, str]]) -> Data:
    rows = [json.dumps({"instruction": instruction, "output": output}) + "\n" for instruction, output in pairs]
    (folder / "sft_instructions.jsonl").write_text("".join(rows))
    return Data(folder)


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return write(tmp_path, [(f"What is the licence {n}?", f"It is {n % 7}.") for n in range(60)])


def test_examples_are_distinct_short_enough_and_fixed_by_the_seed(tiny_model: LanguageModel, data: Data) -> None:
    examples, held_out = choose(tiny_model, data, BUDGET, seed=1)
    both = [*examples, *held_out]
    assert (len(examples), len(held_out)) == (BUDGET.train, BUDGET.held_out)
    assert len({example.prompt for example in both}) == len(both)
    assert all(len(example.ids) <= BUDGET.max_ids and example.answer[-1] == END for example in both)
    assert choose(tiny_model, data, BUDGET, seed=1) == (examples, held_out)
    assert choose(tiny_model, data, BUDGET, seed=2) != (examples, held_out)


def test_the_held_out_questions_of_the_data_are_not_trained_on(tiny_model: LanguageModel, data: Data) -> None:
    examples, held_out = choose(tiny_model, data, replace(BUDGET, train=40), seed=0)
    asked = {tuple(prompt_ids(tiny_model, question)) for question, _ in data.questions()}
    assert asked.isdisjoint(example.prompt for example in [*examples, *held_out])


def test_repeated_long_and_empty_examples_do_not_count(tiny_model: LanguageModel, tmp_path: Path) -> None:
    pairs = [("Asked?", "To measure."), ("What?", "That."), ("Long?", "work " * 80), ("Empty?", "")]
    data = write(tmp_path, [pair for pair in pairs for _ in range(20)])
    examples, _ = choose(tiny_model, data, replace(BUDGET, train=1, held_out=0), seed=0)
    assert tiny_model.tokenizer.decode(examples[0].answer[:-1]) == "That."
    with pytest.raises(InvalidArgumentError, match=r"sft_instructions\.jsonl: .* needs 2 different .* it has 1:"):
        choose(tiny_model, data, replace(BUDGET, train=1, held_out=1), seed=0)


def test_instructions_stand_in_the_template_or_before_an_empty_line(tiny_folder: Path, bos_folder: Path) -> None:
    chat, plain = load(tiny_folder, device="cpu"), load(bos_folder, device="cpu")
    plain.tokenizer.chat_template = None
    text = chat.tokenizer.decode(prompt_ids(chat, "Why?"))
    assert text == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert plain.tokenizer.decode(prompt_ids(plain, " Why? ")) == "<|endoftext|>Why?\n\n"
    assert plain.tokenizer.decode(answer_ids(plain, "So.")) == "So.<|im_end|>"
    assert until_end(chat, [5, END, 7]) == [5, END]
    assert until_end(chat, [5, 7]) == [5, 7]


@torch.no_grad()
def test_the_loss_is_that_of_the_answers_ids_alone(tiny_model: LanguageModel) -> None:
    rng = np.random.default_rng(0)
    lengths = [(9, 3), (9, 5), (6, 1), (12, 5), (9, 3)]
    examples = [Example(tuple(rng.integers(3, 1000, n).tolist()), n - answer) for n, answer in lengths]
    total = torch.zeros(())
    for example in examples:
        logits = tiny_model.model(torch.tensor([example.ids])).logits[0, example.start - 1 : -1]
        total = total + functional.cross_entropy(logits, torch.tensor(example.answer), reduction="sum")
    expected = float(total) / sum(answer for _, answer in lengths)
    assert float(cross_entropy(tiny_model, examples)) == pytest.approx(expected, rel=1e-4)
    assert held_out_loss(tiny_model, examples) == pytest.approx(expected, rel=1e-4)


def test_it_learns_the_answers_and_counts_its_work(fresh_model: LanguageModel, data: Data) -> None:
    examples, held_out = choose(fresh_model, data, BUDGET, seed=0)
    before = held_out_loss(fresh_model, held_out), held_out_loss(fresh_model, examples)
    trained = supervise(fresh_model, examples, 3e-3, BUDGET, seed=0)
    assert held_out_loss(fresh_model, held_out) < 0.7 * before[0]
    assert held_out_loss(fresh_model, examples) < 0.7 * before[1]
    assert trained.to_json() == {"steps": 12, "trained_tokens": 2 * sum(len(example.ids) - 1 for example in examples)}


def test_the_same_seed_trains_the_same_weights(tiny_folder: Path, data: Data) -> None:
    weights = []
    for seed in (0, 0, 1):
        model = load(tiny_folder, device="cpu")
        supervise(model, choose(model, data, BUDGET, seed=0)[0], 1e-3, BUDGET, seed)
        weights.append(torch.cat([p.detach().flatten() for p in model.model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_rate_rises_to_its_peak_and_falls_toward_zero() -> None:
    rates = [rate(step, 40, 1e-3) for step in range(40)]
    assert rates[:4] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0 < rates[-1] < 1e-5
    assert rate(0, 1, 1e-3) == 1e-3


def test_the_optimizer_follows_the_schedule(fresh_model: LanguageModel, data: Data) -> None:
    """The first step of Adam moves a weight by the rate: at a warm-up of four steps, by a quarter of the peak."""
    example = choose(fresh_model, data, BUDGET, seed=0)[0][0]
    weights = [fresh_model.head()[0].detach().clone()]

    def loss(batch: list[Example]) -> torch.Tensor:
        weights.append(fresh_model.head()[0].detach().clone())
        return cross_entropy(fresh_model, batch)

    train(fresh_model, [example] * 4, loss, lambda item: item.read, 1e-3, replace(BUDGET, epochs=40), 0)
    assert float((weights[2] - weights[1]).abs().max()) == pytest.approx(2.5e-4, rel=0.01)


def test_frozen_parameters_stay(fresh_model: LanguageModel, data: Data) -> None:
    for parameter in fresh_model.model.parameters():
        parameter.requires_grad_(False)
    norm = fresh_model.model.get_parameter("model.norm.weight").requires_grad_(True)
    frozen = fresh_model.head()[0].clone()
    supervise(fresh_model, choose(fresh_model, data, BUDGET, seed=0)[0], 1e-2, BUDGET, seed=0)
    assert torch.equal(fresh_model.head()[0], frozen)
    assert not torch.equal(norm, torch.ones_like(norm))


def test_a_loss_that_is_not_finite_is_refused(fresh_model: LanguageModel) -> None:
    def broken(batch: list[int]) -> torch.Tensor:
        return fresh_model.head()[0].sum() * torch.nan

    with pytest.raises(InvalidArgumentError, match=r"learning rate 0\.001: the loss is not finite at step 0"):
        train(fresh_model, [1, 2], broken, lambda item: item, 1e-3, BUDGET, 0)
