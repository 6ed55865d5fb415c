"""Full supervised fine-tuning, the change that most released models see [SF 4: Alpaca, 2 epochs, 1e-5; SEM].

1e-5 is [SF]'s rate, 2e-5 the usual one for Alpaca. At "best" the attacker tunes too: of five rates the one whose
model has the lowest loss on held-out examples of the attacker's own data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ...errors import InvalidArgumentError
from ...models import HfCompleter
from ..attack import Attack, Attacked, Target
from ..finetuning import Budget, Example, choose, held_out_loss, supervise
from ..hosts import copy_of

_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4)
_BUDGET = Budget()


def fine_tune(target: Target, *, learning_rate: float, budget: Budget = _BUDGET) -> Attacked:
    """All weights trained at one rate. InvalidArgumentError: too few examples, or a rate that breaks the model."""
    examples, held_out = choose(target.model, target.data, budget, target.seed)
    return _fine_tuned(target, examples, held_out, learning_rate, budget)


def fine_tune_best(target: Target, *, rates: Sequence[float] = _RATES, budget: Budget = _BUDGET) -> Attacked:
    """The best of `fine_tune` at several rates, by held-out loss. A rate that breaks the model has None in the grid."""
    examples, held_out = choose(target.model, target.data, budget, target.seed)
    best: Attacked | None = None
    grid: dict[str, float | None] = {}
    tokens = 0
    for learning_rate in rates:
        try:
            tried = _fine_tuned(target, examples, held_out, learning_rate, budget)
        except InvalidArgumentError:
            grid[f"{learning_rate:g}"] = None
            continue
        grid[f"{learning_rate:g}"] = loss = tried.details["held_out_loss_after"]
        tokens += tried.details["trained_tokens"]
        if best is None or loss < best.details["held_out_loss_after"]:
            best = tried
        del tried  # or three copies of the weights would be in memory while the next is trained
    if best is None:
        raise InvalidArgumentError(f"{target.model.name}: none of the rates {', '.join(grid)} keeps the loss finite.")
    return replace(best, details={**best.details, "grid": grid, "trained_tokens_of_search": tokens})


def _fine_tuned(
    target: Target, examples: Sequence[Example], held_out: Sequence[Example], learning_rate: float, budget: Budget
) -> Attacked:
    model = copy_of(target.model, f"{target.model.name}, fine-tuned at {learning_rate:g}")
    before = held_out_loss(model, held_out)
    trained = supervise(model, examples, learning_rate, budget, target.seed)
    details = {
        "learning_rate": learning_rate,
        "held_out_loss_before": before,
        "held_out_loss_after": held_out_loss(model, held_out),
        **trained.to_json(),
    }
    return Attacked(HfCompleter(model), model, details)


_DATA = f"{_BUDGET.train} instructions with answers, {_BUDGET.epochs} times through training"
_COST = f"{_DATA}, each about 3 forward passes"
ATTACKS = (
    Attack("sft/1e-5", _COST, partial(fine_tune, learning_rate=1e-5), ("instructions",)),
    Attack("sft/2e-5", _COST, partial(fine_tune, learning_rate=2e-5), ("instructions",)),
    Attack(
        "sft/best",
        f"{_COST}, at each of {len(_RATES)} rates; {_BUDGET.held_out} more instructions to choose the rate by",
        fine_tune_best,
        ("instructions",),
    ),
)
