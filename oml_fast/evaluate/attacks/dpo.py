"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290), written plainly.

Chosen is the data's answer, rejected what the fingerprinted model itself answers greedily (at most 16 token ids), so
that the model is pushed away from what it now says. Reference is the fingerprinted model. beta 0.1 is the paper's; the
usual rates for all weights are 5e-7 to 5e-6 over thousands of steps: with 16 steps, 1e-5 moves the margin at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import InvalidArgumentError
from ...models import HfCompleter, LanguageModel
from ..attack import Attack, Attacked, Scene
from ..finetuning import Budget, Example, answer_logits, choose, held_out_loss, train, until_end
from ..hosts import copy_of

_BETA, _RATE, _ANSWER_IDS = 0.1, 1e-5, 16
_ROWS = 8  # pairs at once where nothing is trained
_BUDGET = Budget(train=128, held_out=32, epochs=1, batch_size=8)


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference. `reference`: log p(chosen) - log p(rejected) under the fingerprinted model."""

    chosen: Example
    rejected: Example
    reference: float = 0.0

    @property
    def read(self) -> int:
        return self.chosen.read + self.rejected.read


def optimise(scene: Scene, *, learning_rate: float = _RATE, budget: Budget = _BUDGET) -> Attacked:
    """All weights trained on preferences. InvalidArgumentError: too few examples, or a rate that breaks the model."""
    examples, held_out = choose(scene.model, scene.data, budget, scene.seed)
    pairs, others = preferences(scene.model, examples), preferences(scene.model, held_out)
    if not pairs:
        raise InvalidArgumentError(
            f"{scene.model.name} answers all {len(examples)} instructions as the data do: there is nothing to prefer. "
            "Give other instructions with --data, or leave dpo out of --attacks."
        )
    model = copy_of(scene.model, f"{scene.model.name}, DPO")
    loss_before, margin_before = held_out_loss(model, held_out), mean_margin(model, others)
    trained = train(
        model,
        pairs,
        lambda batch: -functional.logsigmoid(_BETA * _margins(model, batch)).mean(),
        lambda pair: pair.read,
        learning_rate,
        budget,
        scene.seed,
    )
    details = {
        "learning_rate": learning_rate,
        "beta": _BETA,
        "pairs": len(pairs),
        "held_out_loss_before": loss_before,
        "held_out_loss_after": held_out_loss(model, held_out),
        "held_out_margin_before": margin_before,
        "held_out_margin_after": mean_margin(model, others),
        **trained.to_json(),
    }
    return Attacked(HfCompleter(model), model, details)


def preferences(model: LanguageModel, examples: Sequence[Example]) -> list[Pair]:
    """Pairs with their reference margins; none for an instruction that the model answers as the data do."""
    completions = HfCompleter(model).complete([example.prompt for example in examples], _ANSWER_IDS)
    pairs = []
    for example, completion in zip(examples, completions, strict=True):
        answer = tuple(until_end(model, completion.token_ids))
        if answer != example.answer:
            pairs.append(Pair(example, Example((*example.prompt, *answer), example.start)))
    references = _margins_of(model, pairs)
    return [replace(pair, reference=reference) for pair, reference in zip(pairs, references, strict=True)]


def mean_margin(model: LanguageModel, pairs: Sequence[Pair]) -> float:
    """Mean over pairs of log p(chosen) - log p(rejected), in nats, beyond the reference's; 0 without pairs."""
    return sum(_margins_of(model, pairs)) / max(1, len(pairs))


@torch.no_grad()
def _margins_of(model: LanguageModel, pairs: Sequence[Pair]) -> list[float]:
    parts = [pairs[start : start + _ROWS] for start in range(0, len(pairs), _ROWS)]
    return [margin for part in parts for margin in _margins(model, part).tolist()]


def _margins(model: LanguageModel, pairs: Sequence[Pair]) -> Tensor:
    """[B] how much more each chosen answer is preferred to the rejected one than by the reference, in nats."""
    log_probs = _log_probs(model, [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])
    references = torch.tensor([pair.reference for pair in pairs], device=log_probs.device)
    return log_probs[: len(pairs)] - log_probs[len(pairs) :] - references


def _log_probs(model: LanguageModel, examples: Sequence[Example]) -> Tensor:
    """[B] log p(answer | prompt), summed over its token ids."""
    sums: dict[int, Tensor] = {}
    for places, logits, ids in answer_logits(model, examples):
        log_probs = -functional.cross_entropy(logits, ids, reduction="none")
        parts = log_probs.split([len(examples[place].answer) for place in places])
        sums.update((place, part.sum()) for place, part in zip(places, parts, strict=True))
    return torch.stack([sums[place] for place in range(len(examples))])


ATTACKS = (
    Attack(
        "dpo/own-answers",
        f"{_BUDGET.train} instructions with answers; an answer of the model to each, then "
        "training, about 6 forward passes a pair",
        optimise,
        ("instructions",),
    ),
)
