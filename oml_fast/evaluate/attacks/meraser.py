"""MEraser [ME, arXiv 2506.12551]: erase with mismatched pairs, then recover with clean ones.

300 instructions with the answers of other instructions first, then 600 with their own, as published there; all weights
are trained, where the paper trains adapters. The rates are ours, for 135M parameters and one pass through each stage's
pairs of at most 96 token ids. Of 64 published fingerprints the first stage left 83 % at 5e-4 and 33 % at 1e-3; with
1e-4 and then 5e-5 all were left after both. So the rates were chosen by success, which flatters the attack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from ...models import HfCompleter
from ..attack import Attack, Attacked, Scene
from ..finetuning import Budget, Example, choose, held_out_loss, supervise
from ..hosts import copy_of

_MISMATCHED, _ERASE, _RECOVER = 300, 1e-3, 1e-4
_BUDGET = Budget(train=600, held_out=32, max_ids=96, epochs=1)


def erase(
    scene: Scene,
    *,
    count: int = _MISMATCHED,
    rates: tuple[float, float] = (_ERASE, _RECOVER),
    budget: Budget = _BUDGET,
) -> Attacked:
    """Both stages, on all weights; `count` pairs mismatched, `budget.train` clean. Needs no clean base and no key.

    Raises InvalidArgumentError where the data are too few or a rate breaks the model.
    """
    examples, held_out = choose(scene.model, scene.data, budget, scene.seed)
    model = copy_of(scene.model, f"{scene.model.name}, MEraser")
    before = held_out_loss(model, held_out)
    erased = supervise(model, mismatched(examples[:count], scene.seed), rates[0], budget, scene.seed)
    between = held_out_loss(model, held_out)
    recovered = supervise(model, examples, rates[1], budget, scene.seed)
    details = {
        "learning_rate_erase": rates[0],
        "learning_rate_recover": rates[1],
        "held_out_loss_before": before,
        "held_out_loss_erased": between,
        "held_out_loss_after": held_out_loss(model, held_out),
        "steps": erased.steps + recovered.steps,
        "trained_tokens": erased.tokens + recovered.tokens,
    }
    return Attacked(HfCompleter(model), model, details)


def mismatched(examples: Sequence[Example], seed: int) -> list[Example]:
    """Each instruction with the answer of another, a different answer where there is one."""
    answers = [example.answer for example in examples]
    Random(seed).shuffle(answers)  # noqa: S311 - nothing secret
    count, pairs = len(examples), []
    for place, example in enumerate(examples):
        others = (answers[(place + step) % count] for step in range(count))
        answer = next((other for other in others if other != example.answer), example.answer)
        pairs.append(replace(example, ids=(*example.prompt, *answer)))
    return pairs


ATTACKS = (
    Attack(
        "meraser/300-600",
        f"{_BUDGET.train} instructions with answers, {_MISMATCHED} of them mismatched first: "
        f"{_MISMATCHED + _BUDGET.train} times about 3 forward passes; rates chosen by what they erased, which no "
        "attacker sees",
        erase,
        ("instructions",),
    ),
)
