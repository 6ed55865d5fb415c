"""A step of training on a model of some depth, its own code, with ids and weights of no meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..embed.change import Whitened
from ..embed.data import Example
from ..embed.objective import CrossEntropy, MinimumKL, response_loss, stay_kl, text_kl
from ..embed.optimizer import AnchoredAdamW
from ..embed.recipe import Recipe
from ..embed.tuning import tuning_shift
from ..embed.weights import View, trained_weights
from ..embed.workload import ANSWER, STAY, Pass, Workload
from ..measure import States
from ..models import LanguageModel, recompute_blocks

_ID = 1  # any token id: nobody looks it up


class Step:
    """One of `processes` that share each step's sequences. All weights that are trained have gradients to add to.

    whitened: as whitening.py gives it.
    """

    def __init__(
        self,
        model: LanguageModel,
        recipe: Recipe,
        work: Workload,
        processes: int = 1,
        *,
        recompute: bool = False,
        whitened: Mapping[nn.Parameter, Tensor] | None = None,
    ) -> None:
        if recompute:
            recompute_blocks(model.model)
        self.model, self._recipe, self._work, self._processes = model, recipe, work, processes
        self.compact = recipe.states == "bfloat16"
        rounded = recipe.rounded > 0
        self.weights = trained_weights(model, recipe.write_to, whitened, seen_rounded=rounded, compact=self.compact)
        self.optimizer = AnchoredAdamW(self.weights, 1e-6, 0.5)
        self.want_gradients()

    def want_gradients(self) -> None:
        """Make those that are not there."""
        for weight in self.weights:
            if weight.parameter.grad is None:
                weight.parameter.grad = torch.zeros_like(weight.parameter)

    @property
    def tensors(self) -> list[Tensor]:
        """All that lives through training, gradients too."""
        own = [*self.model.model.parameters(), *self.optimizer.tensors().values()]
        own += [weight.base() for weight in self.weights]
        own += [weight.parameter.grad for weight in self.weights if weight.parameter.grad is not None]
        return own + [w.change.whitening for w in self.weights if isinstance(w.change, Whitened)]

    def passes(self) -> Iterator[tuple[str, float, Callable[[], Any]]]:
        """The name of each pass, how often a step has it, and its forward and backward pass at its largest."""
        for part in self._work.passes:
            count = part.at_once(self._processes)
            yield part.name, part.share * part.count / self._processes / count, self._pass(part, count)

    def update(self) -> None:
        """The optimizer's step, which takes the gradients."""
        self.optimizer.step()

    @property
    def viewed(self) -> float:
        """Share of the steps that see the weights changed, and write them for it."""
        return self._recipe.scaled + self._recipe.rounded + self._recipe.tuned

    def view(self) -> None:
        """Write them, as part of their change."""
        for weight in self.weights:
            weight.write(View(share=self._recipe.scaled_from))

    def _pass(self, part: Pass, count: int) -> Callable[[], Any]:
        model = self.model
        weight, bias = (None if t is None else t.detach() for t in model.head())
        assert weight is not None
        if part.loss == ANSWER:
            tail = (_ID,) * (part.rows - 1)
            example = Example(0, (_ID,) * part.length, tuple(range(self._work.keys.responses)), tail)
            objective = MinimumKL() if self._recipe.objective == "minimum_kl" else CrossEntropy()
            base = States(weight.new_zeros(count * part.rows, weight.shape[1]), (weight, bias))
            return lambda: response_loss(model, [example] * count, objective, base)[0].sum().backward()
        if part.loss == STAY:
            base = States(weight.new_zeros(count, weight.shape[1]), (weight, bias))
            return lambda: stay_kl(model, [[_ID] * (part.length + 1)] * count, base)[0].sum().backward()
        texts = [[_ID] * part.length] * count
        if part.name == "tuning":
            return lambda: tuning_shift(model, texts, 1e-6)
        base = States(weight.new_zeros(count * part.rows, weight.shape[1]), (weight, bias))
        return lambda: text_kl(model, texts, base, [part.length - part.rows] * count).sum().backward()
