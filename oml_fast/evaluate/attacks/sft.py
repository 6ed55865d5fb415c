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
from ..attack import Attack, Attacked, Scene
from ..finetuning import Budget, Example, choose, held_out_loss, supervise
from ..hosts import copy_of

_RATES = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3)
_BUDGET = Budget()


def fine_tune(scene: Scene, *, learning_rate: float, budget: Budget = _BUDGET) -> Attacked:
    """All weights trained at one rate. InvalidArgumentError: too few examples, or a rate that breaks the model."""
    examples, held_out = choose(scene.model, scene.data, budget, scene.seed)
    return _fine_tuned(scene, examples, held_out, learning_rate, budget)


def fine_tune_best(scene: Scene, *, rates: Sequence[float] = _RATES, budget: Budget = _BUDGET) -> Attacked:
    """The best of `fine_tune` over rising `rates` by held-out loss, climbing from the middle one while it falls.

    A loss with one valley over the rates costs two or three trainings beside the best one. `grid` in the details holds
    the rates tried; a rate that breaks the model has None there.
    """
    examples, held_out = choose(scene.model, scene.data, budget, scene.seed)
    search = _Search(scene, examples, held_out, budget)
    middle = len(rates) // 2
    search.improves(rates[middle])
    for step in (1, -1):
        place = middle + step
        while 0 <= place < len(rates) and search.improves(rates[place]):
            place += step
        if place != middle + step:  # it fell on this side, so the other one need not be tried
            break
    if search.best is None:
        named = ", ".join(f"{rate:g}" for rate in search.grid)
        raise InvalidArgumentError(f"{scene.model.name}: none of the rates {named} keeps the loss finite.")
    grid = {f"{rate:g}": loss for rate, loss in sorted(search.grid.items())}
    details = {**search.best.details, "grid": grid, "trained_tokens_of_search": search.tokens}
    return replace(search.best, details=details)


class _Search:
    """Trainings at several rates, of which only the best is kept."""

    def __init__(self, scene: Scene, examples: Sequence[Example], held_out: Sequence[Example], budget: Budget) -> None:
        self._train = partial(_fine_tuned, scene, examples, held_out, budget=budget)
        self.best: Attacked | None = None
        self.grid: dict[float, float | None] = {}
        self.tokens = 0

    def improves(self, learning_rate: float) -> bool:
        """Train at this rate; whether its held-out loss is the lowest so far."""
        try:
            tried = self._train(learning_rate=learning_rate)
        except InvalidArgumentError:
            self.grid[learning_rate] = None
            return False
        self.grid[learning_rate] = loss = tried.details["held_out_loss_after"]
        self.tokens += tried.details["trained_tokens"]
        if self.best is not None and loss >= self.best.details["held_out_loss_after"]:
            return False
        self.best = tried
        return True


def _fine_tuned(
    scene: Scene, examples: Sequence[Example], held_out: Sequence[Example], learning_rate: float, budget: Budget
) -> Attacked:
    model = copy_of(scene.model, f"{scene.model.name}, fine-tuned at {learning_rate:g}")
    before = held_out_loss(model, held_out)
    trained = supervise(model, examples, learning_rate, budget, scene.seed)
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
        f"{_COST}, at three or four rates; {_BUDGET.held_out} more instructions to choose the rate by",
        fine_tune_best,
        ("instructions",),
    ),
)
