"""Full supervised fine-tuning, the change that most released models see [SF 4: Alpaca, 2 epochs, 1e-5; SEM].

1e-5 is [SF]'s rate, 2e-5 the usual one for Alpaca. At "best" the attacker tunes too: of five rates the one whose
model has the lowest loss on held-out examples of the attacker's own data. "2000" is ten times the others' data at 2e-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ...errors import InvalidArgumentError
from ...models import HfCompleter
from ..answers import Questions
from ..attack import Attack, Attacked, Scene
from ..finetuning import Budget, Example, choose, held_out_loss, prompt_ids, supervise
from ..hosts import copy_of

_RATES = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3)
_BUDGET = Budget()
# Of the public data's 2,192 rows 2,097 are different and answered: 2,081 have at most 256 token ids, all at most 314.
# Without the 40 that the battery asks 2,057 are left: 2,000 and 48 held out take all lengths and every fifth row.
_MANY = Budget(train=2000, max_ids=320)


def fine_tune(scene: Scene, *, learning_rate: float, budget: Budget = _BUDGET) -> Attacked:
    """All weights trained at one rate. InvalidArgumentError: too few examples, or a rate that breaks the model."""
    examples, held_out = choose(scene.model, scene.data, budget, scene.seed)
    return _fine_tuned(scene, examples, held_out, learning_rate, budget)


def fine_tune_on_many(scene: Scene, *, learning_rate: float, budget: Budget = _MANY) -> Attacked:
    """As `fine_tune`, also on those held-out questions of the data that the battery does not ask."""
    examples, held_out = choose(scene.model, scene.data, budget, scene.seed, _unasked(scene))
    return _fine_tuned(scene, examples, held_out, learning_rate, budget)


def _unasked(scene: Scene) -> list[tuple[str, str]]:
    asked = {tuple(ids) for ids in Questions(scene.base, scene.data).prompts}
    pairs = scene.data.questions()
    return [(question, answer) for question, answer in pairs if tuple(prompt_ids(scene.base, question)) not in asked]


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


def _cost(budget: Budget) -> str:
    often = f"{budget.epochs} times through training, each about 3 forward passes"
    return f"{budget.train} instructions with answers, {often}"


_COST = _cost(_BUDGET)
ATTACKS = (
    Attack("sft/1e-5", _COST, partial(fine_tune, learning_rate=1e-5), ("instructions",)),
    Attack("sft/2e-5", _COST, partial(fine_tune, learning_rate=2e-5), ("instructions",)),
    Attack(
        "sft/best",
        f"{_COST}, at three or four rates; {_BUDGET.held_out} more instructions to choose the rate by",
        fine_tune_best,
        ("instructions",),
    ),
    Attack("sft/2000", _cost(_MANY), partial(fine_tune_on_many, learning_rate=2e-5), ("instructions",)),
)
