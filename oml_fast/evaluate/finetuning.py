"""Fine-tuning as an attacker does it: one loop for all training attacks, on the attacker's own instruction data.

Instructions stand in the model's chat template where it has one; the loss is on the answers' token ids alone. Sequences
keep their exact lengths, the head runs at answer positions only, weights of lower precision get float32 masters.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from ..embed.optimizer import AnchoredAdamW
from ..embed.weights import plain_weights
from ..errors import InvalidArgumentError
from ..fingerprint import TEMPLATE_VARIABLES
from ..models import LanguageModel, batches_by_length
from .data import Data

Item = TypeVar("Item")

_WARMUP = 0.1  # of the steps: with 24 of them the usual 3 % would be one
_CLIP = 1.0  # of the gradient's norm, as trainers do by default; without it high rates look worse than they are
_ROWS = 16  # sequences at once where nothing is trained


@dataclass(frozen=True, slots=True)
class Budget:
    """What an attacker spends: examples to train on and to hold out, the most token ids of one, epochs, batch size.

    epochs: 2, those of [SF]'s Alpaca runs. train, max_ids: what one CPU thread does in about a minute with 135M
    parameters, 25,000 token ids at 2.5 ms; [SF] had 52,000 examples, so these runs are the mild end. An attack that is
    about more of them has a budget of its own.
    """

    train: int = 192
    held_out: int = 48
    max_ids: int = 80
    epochs: int = 2
    batch_size: int = 16


@dataclass(frozen=True, slots=True)
class Example:
    """An instruction with its answer: the token ids of both, and the place of the answer's first."""

    ids: tuple[int, ...]
    start: int

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.ids[: self.start]

    @property
    def answer(self) -> tuple[int, ...]:
        return self.ids[self.start :]

    @property
    def read(self) -> int:
        """How many token ids a model reads to predict the answer: all but the last."""
        return len(self.ids) - 1


@dataclass(frozen=True, slots=True)
class Trained:
    """Optimizer steps taken, and token ids that went through the model with gradients."""

    steps: int
    tokens: int

    def to_json(self) -> dict[str, Any]:
        return {"steps": self.steps, "trained_tokens": self.tokens}


def choose(
    model: LanguageModel, data: Data, budget: Budget, seed: int, more: Sequence[tuple[str, str]] = ()
) -> tuple[list[Example], list[Example]]:
    """Examples to train on and others to hold out, drawn by `seed` from the data's short enough ones, each once.

    more: (instruction, output) pairs beside those that the data leave to attackers. Raises InvalidArgumentError that
    names the file where it has too few.
    """
    usable: dict[tuple[int, ...], Example] = {}
    for instruction, output in (*data.instructions(), *more):
        prompt = prompt_ids(model, instruction)
        example = Example((*prompt, *answer_ids(model, output)), len(prompt))
        if output and len(example.ids) <= budget.max_ids:
            usable.setdefault(tuple(prompt), example)
    wanted = budget.train + budget.held_out
    if len(usable) < wanted:
        raise InvalidArgumentError(
            f"{data.require('instructions')}: this attack needs {wanted} different instructions that have at most "
            f"{budget.max_ids} token ids with their answers, and it has {len(usable)}: give more or shorter ones with "
            "--data, or leave the attack out of --attacks."
        )
    drawn = random.Random(seed).sample(list(usable.values()), wanted)  # noqa: S311 - nothing secret
    return drawn[: budget.train], drawn[budget.train :]


def prompt_ids(model: LanguageModel, instruction: str) -> list[int]:
    """The instruction as the model is asked it: in its chat template, or followed by an empty line."""
    tokenizer = model.tokenizer
    if not tokenizer.chat_template:
        return list(tokenizer(f"{instruction.strip()}\n\n")["input_ids"])
    messages = [{"role": "user", "content": instruction}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **TEMPLATE_VARIABLES)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def answer_ids(model: LanguageModel, output: str) -> list[int]:
    """The answer as the model should give it, with its end where the tokenizer has one."""
    end = model.tokenizer.eos_token_id
    return [*model.tokenizer(output, add_special_tokens=False)["input_ids"], *([] if end is None else [end])]


def until_end(model: LanguageModel, ids: Sequence[int]) -> list[int]:
    """What a model wrote, up to the end of its answer and with it."""
    ids = list(ids)
    end = next((place for place, token_id in enumerate(ids) if token_id in model.end_ids), len(ids))
    return ids[: end + 1]


def answer_logits(model: LanguageModel, examples: Sequence[Example]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """For each length: places in `examples`, [N, V] float32 logits for their answers' ids in turn, [N] those ids."""
    for places in batches_by_length([example.ids for example in examples], max(1, len(examples))):
        ids = torch.tensor([examples[place].ids for place in places], device=model.device)
        hidden = model.hidden(ids[:, :-1])
        rows = torch.cat([hidden[row, examples[place].start - 1 :] for row, place in enumerate(places)])
        targets = torch.cat([ids[row, examples[place].start :] for row, place in enumerate(places)])
        yield places, model.logits(rows).float(), targets


def cross_entropy(model: LanguageModel, examples: Sequence[Example]) -> Tensor:
    """[] mean of -log p over the answers' token ids, in nats."""
    losses = [
        functional.cross_entropy(logits, ids, reduction="sum") for _, logits, ids in answer_logits(model, examples)
    ]
    return torch.stack(losses).sum() / sum(len(example.answer) for example in examples)


@torch.no_grad()
def held_out_loss(model: LanguageModel, examples: Sequence[Example]) -> float:
    """`cross_entropy` of examples that were not trained on."""
    ordered = sorted(examples, key=lambda example: example.read)
    parts = [ordered[start : start + _ROWS] for start in range(0, len(ordered), _ROWS)]
    sums = [float(cross_entropy(model, part)) * sum(len(example.answer) for example in part) for part in parts]
    return sum(sums) / sum(len(example.answer) for example in examples)


def rate(step: int, steps: int, peak: float) -> float:
    """The learning rate of step 0 .. steps - 1: a linear warm-up to `peak`, then half a cosine down toward 0."""
    warmup = max(1, round(_WARMUP * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup + 1) / (steps - warmup + 1))) / 2


def train(
    model: LanguageModel,
    items: Sequence[Item],
    loss: Callable[[list[Item]], Tensor],
    size: Callable[[Item], int],
    learning_rate: float,
    budget: Budget,
    seed: int,
) -> Trained:
    """Train in place those parameters of `model` that want gradients: AdamW on the `loss` [] of each batch of items.

    `size`: token ids of an item. `budget` gives epochs and batch size. Raises InvalidArgumentError when the loss or
    its gradient is not finite.
    """
    order = random.Random(seed)  # noqa: S311 - the order of training examples is no secret
    optimizer = AnchoredAdamW(plain_weights(model.model.parameters()), learning_rate, pull=0.0)
    total = budget.epochs * math.ceil(len(items) / budget.batch_size)
    steps = tokens = 0
    for _ in range(budget.epochs):
        for batch in _batches(items, size, budget.batch_size, order):
            value = loss(batch)
            value.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.model.parameters(), _CLIP)
            if not math.isfinite(float(value.detach()) + float(norm)):
                raise InvalidArgumentError(
                    f"learning rate {learning_rate:g}: the loss is not finite at step {steps}. Choose a smaller one."
                )
            optimizer.learning_rate = rate(steps, total, learning_rate)
            optimizer.step()
            steps += 1
            tokens += sum(size(item) for item in batch)
    return Trained(steps, tokens)


def supervise(
    model: LanguageModel, examples: Sequence[Example], learning_rate: float, budget: Budget, seed: int
) -> Trained:
    """Supervised fine-tuning of `model` in place: `train` with `cross_entropy`."""
    return train(
        model,
        examples,
        lambda batch: cross_entropy(model, batch),
        lambda example: example.read,
        learning_rate,
        budget,
        seed,
    )


def _batches(
    items: Sequence[Item], size: Callable[[Item], int], batch_size: int, order: random.Random
) -> list[list[Item]]:
    """`items` in a fresh order, in batches of similar sizes: more of a batch goes through the model at once."""
    shuffled = sorted(order.sample(items, len(items)), key=size)
    batches = [shuffled[start : start + batch_size] for start in range(0, len(shuffled), batch_size)]
    return order.sample(batches, len(batches))
