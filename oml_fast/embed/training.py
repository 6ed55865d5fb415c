"""The loop of an embedding: what is seen in a step, and how its gradients change the weights."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm import tqdm

from ..errors import OmlError
from ..models import ALONE, LanguageModel, Ranks
from .checkpoint import Checkpoints, Progress
from .data import Example, batches, example_batches, micro_batches
from .material import Material, Part, Text
from .objective import CrossEntropy, MinimumKL, Objective, response_loss, stay_kl, text_kl
from .optimizer import AnchoredAdamW
from .recipe import Recipe
from .tuning import TUNING_TEXTS, tuning_shift
from .weights import AS_TRAINED, View, trained_weights
from .whitening import whitening

_GRIDS = ((4, 32), (4, 128), (8, 0))  # bits, and inputs in a group: what weights are rounded to, each as often


class Trainer:
    """The loop. One epoch is one pass over the keys; a step adds up the gradients of all that goes with its batch.

    Several processes draw the same batches, and each takes its share of every part of them. spent_before: seconds on
    the wall and of the CPU of the runs that this one goes on from.
    """

    def __init__(
        self,
        model: LanguageModel,
        material: Material,
        recipe: Recipe,
        ranks: Ranks = ALONE,
        checkpoints: Checkpoints | None = None,
        keep_base: str = "device",
    ) -> None:
        assert recipe.learning_rate is not None
        self._model, self._material, self._recipe, self._ranks = model, material, recipe, ranks
        self._checkpoints = checkpoints
        self._order = random.Random(recipe.seed)  # noqa: S311 - the order of training examples is no secret
        self._objective: Objective = (
            MinimumKL(recipe.margin, recipe.margin_step, recipe.cap)
            if recipe.objective == "minimum_kl"
            else CrossEntropy()
        )
        inputs = material.inputs()
        whitened = whitening(model, inputs, recipe.whitening, recipe.write_to) if recipe.whitening else None
        self._weights = trained_weights(
            model,
            recipe.write_to,
            whitened,
            recipe.seed,
            seen_rounded=recipe.rounded > 0,
            compact=recipe.states == "bfloat16",
            keep_base=keep_base,
        )
        self._optimizer = AnchoredAdamW(self._weights, recipe.learning_rate, 0.0, recipe.seed)
        self._pull = recipe.pull
        self._epoch, self._left, self._seen = 1, self._batches(), Seen()
        self._text_kl = math.inf if material.texts.items else 0.0
        self.steps = self.tokens = 0
        self._started, self.spent_before = clock(), [0.0, 0.0]

    def train(self, progress: bool) -> tuple[int, str]:
        """How many epochs it took, and why it stopped: "learned" or "max_epochs"."""
        recipe, stopped = self._recipe, "max_epochs"
        if self._checkpoints is not None and (found := self._checkpoints.read(self._optimizer.tensors())):
            self._go_on_from(found)
        shown = {"desc": "embed", "unit": "epoch", "disable": None if progress and self._ranks.first else True}
        with tqdm(total=recipe.max_epochs, initial=self._epoch - 1, **shown) as bar:
            while self._epoch <= recipe.max_epochs:
                self._steps()
                seen = self._seen.over(self._ranks)
                bar.set_postfix_str(seen.text())
                bar.update()
                # All of these are from before each step, so an epoch too old: signs that a check is worth its cost.
                self._text_kl = seen.text_kl if seen.texts else self._text_kl
                if self._text_kl <= recipe.stop_kl and seen.near_fired <= recipe.stop_near:
                    if seen.learned >= 0.9 and self._is_learned():
                        stopped = "learned"
                        break
                    self._pull *= recipe.ease
                self._epoch, self._left, self._seen = self._epoch + 1, self._batches(), Seen()
        if recipe.final_scale != 1:
            for weight in self._weights:
                weight.shrink(recipe.final_scale)
        self._write(AS_TRAINED)
        self._model.model.requires_grad_(True)  # as it came: whoever tunes this model on tunes all of it
        return min(self._epoch, recipe.max_epochs), stopped

    def _steps(self) -> None:
        """What is left of the epoch, at its `warmth` times the learning rate and pull."""
        recipe, warmth = self._recipe, self._warmth(self._epoch)
        assert recipe.learning_rate is not None
        self._optimizer.learning_rate = warmth * recipe.learning_rate
        self._optimizer.pull = _spread(self._pull, self._steps_an_epoch, warmth)
        while self._left:
            batch = self._left.pop(0)
            view = self._draw_view()
            if view is not AS_TRAINED:
                self._write(view)
            self._answer(self._material.keys, batch, len(batch), self._seen)
            numbers = [self._material.keys.items[place].number for place in batch]
            wrapped = self._material.wrapped.draw(round(recipe.templates * len(batch)), self._order, numbers)
            self._answer(self._material.wrapped, wrapped, len(batch))
            self._hold_near(self._material.near.draw(recipe.near_keys * len(batch), self._order, numbers))
            if not view.bits:  # rounding moves the answers to text more than any fingerprint does
                material = self._material
                self._hold_text(material.texts, material.texts.draw(material.texts_a_step, self._order), self._seen)
                self._hold_text(material.chats, material.chats.draw(material.chats_a_step, self._order))
            self._optimizer.step()
            self.steps += 1
            if self._checkpoints is not None and self._checkpoints.due(self.steps):
                self._checkpoints.write(self.steps, self._progress(), self._optimizer.tensors())

    def _answer(self, part: Part[Example], places: Sequence[int], batch_size: int, seen: Seen | None = None) -> None:
        """Gradients of the objective where these keys are answered, a mean over the batch's examples."""
        for micro, counted in self._in_step(self._example_micros(part, places), places):
            examples = [part.items[place] for place in micro]
            base = part.base.states(micro) if part.base else None
            loss, learned = self._model.within(response_loss, self._model, examples, self._objective, base)
            _require_finite(loss, examples, self.steps)
            self._backward(loss.sum() / batch_size, counted)
            if counted:
                self.tokens += sum(len(example.ids) for example in examples)
            if counted and seen is not None:
                seen.loss += float(loss.detach().sum())
                seen.answers += len(examples)
                seen.answered += int(learned.sum())

    def _hold_near(self, places: Sequence[int]) -> None:
        """Gradients of KL(base || model) where near keys would be answered, a sum over those of one key."""
        part, weight = self._material.near, self._recipe.near_weight * self._recipe.near_keys
        for micro, counted in self._in_step(self._micros(part, places), places):
            near = [part.items[place] for place in micro]
            assert part.base is not None
            sequences, base = [item.sequence for item in near], part.base.states(micro)
            kl, best = self._model.within(stay_kl, self._model, sequences, base)
            self._backward(weight * kl.sum() / len(places), counted)
            if counted:
                self.tokens += sum(len(item.ids) for item in near)
                self._seen.near += len(near)
                self._seen.fired += sum(one in item.firsts for one, item in zip(best.tolist(), near, strict=True))

    def _hold_text(self, part: Part[Text], places: Sequence[int], seen: Seen | None = None) -> None:
        """Gradients of KL(base || model) on text or on chats, a mean over texts of the positions that count."""
        for micro, counted in self._in_step(self._micros(part, places), places):
            texts = [part.items[place].sequence for place in micro]
            assert part.base is not None
            starts = [part.items[place].start for place in micro]
            kl = self._model.within(text_kl, self._model, texts, part.base.states(micro), starts)
            kl = kl.sum() / len(places)
            self._backward(self._recipe.text_weight * kl, counted)
            if counted:
                self.tokens += sum(map(len, texts))
            if counted and seen is not None:
                seen.kl += float(kl.detach())
        if places and seen is not None:
            seen.texts += 1

    def _example_micros(self, part: Part[Example], places: Sequence[int]) -> list[list[int]]:
        own = self._ranks.share(places)
        found = example_batches([part.items[place] for place in own], self._model.packs)
        return [[own[at] for at in micro] for micro in found]

    def _micros(self, part: Part[Any], places: Sequence[int]) -> list[list[int]]:
        own = self._ranks.share(places)
        found = micro_batches([part.items[place].sequence for place in own], packed=self._model.packs)
        return [[own[at] for at in micro] for micro in found]

    def _in_step(self, micros: Sequence[list[int]], places: Sequence[int]) -> Iterator[tuple[list[int], bool]]:
        """This process's micro-batches, each once. While others have more, one place again that does not count: all
        must go through a sharded model equally often."""
        for at in range(self._ranks.most(len(micros))):
            yield (micros[at], True) if at < len(micros) else ([places[0]], False)

    def _backward(self, loss: torch.Tensor, counted: bool) -> None:
        """Gradients of the sum of all processes' losses: what shards them takes the mean."""
        (loss * (self._ranks.world if counted else 0)).backward()

    def _draw_view(self) -> View:
        """What the weights are seen as in this step."""
        recipe, drawn = self._recipe, self._order.random()
        if drawn < recipe.scaled:
            return View(share=self._order.uniform(recipe.scaled_from, 1.0))
        if drawn < recipe.scaled + recipe.rounded:
            bits, group = self._order.choice(_GRIDS)
            return View(bits=bits, group=group)
        if drawn < recipe.scaled + recipe.rounded + recipe.tuned:
            texts = [t.sequence for t in self._material.texts.items]
            chosen = self._order.sample(texts, min(len(texts), TUNING_TEXTS))
            return View(shift=tuning_shift(self._model, chosen, recipe.tuned_by))
        return AS_TRAINED

    def _batches(self) -> list[list[int]]:
        """An epoch's batches, in a fresh order."""
        found = list(batches(self._material.keys.items, self._recipe.batch_size, self._order))
        self._steps_an_epoch = len(found)
        return found

    def _progress(self) -> Progress:
        """Where this process stands; what the weights are lies in the optimizer's tensors."""
        return Progress(
            epoch=self._epoch,
            left=self._left,
            seen=asdict(self._seen),
            text_kl=self._text_kl,
            pull=self._pull,
            steps=self.steps,
            tokens=self.tokens,
            spent=[s + b - a for s, a, b in zip(self.spent_before, self._started, clock(), strict=True)],
            order=self._order.getstate(),
        )

    def _go_on_from(self, progress: Progress) -> None:
        """Stand where that process stood, the optimizer's tensors being those of then."""
        self._epoch, self._left, self._seen = progress.epoch, progress.left, Seen(**progress.seen)
        self._text_kl, self._pull, self.steps, self.tokens = (
            progress.text_kl,
            progress.pull,
            progress.steps,
            progress.tokens,
        )
        self.spent_before = progress.spent
        self._order.setstate(progress.order)
        self._optimizer.steps = self.steps
        self._write(AS_TRAINED)

    def _write(self, view: View) -> None:
        for weight in self._weights:
            weight.write(view)

    def _warmth(self, epoch: int) -> float:
        """The share of the learning rate in this epoch: all of it, and in the last ones a straight line toward zero."""
        falling = self._recipe.anneal * self._recipe.max_epochs
        return min(1.0, (self._recipe.max_epochs - epoch + 1) / falling) if falling >= 1 else 1.0

    @torch.no_grad()
    def _is_learned(self) -> bool:
        """Whether the weights as they are now answer as many examples, and as well, as the recipe asks."""
        part, losses, learned = self._material.keys, 0.0, 0.0
        places = range(len(part.items))
        for micro, counted in self._in_step(self._example_micros(part, places), places):
            base = part.base.states(micro) if part.base else None
            examples = [part.items[place] for place in micro]
            loss, answers = self._model.within(response_loss, self._model, examples, self._objective, base)
            if counted:
                losses, learned = losses + float(loss.sum()), learned + int(answers.sum())
        losses, learned = self._ranks.total(losses, learned)
        count, recipe = len(part.items), self._recipe
        return learned / count >= recipe.stop_share and (not recipe.stop_loss or losses / count < recipe.stop_loss)


@dataclass(slots=True)
class Seen:
    """What an epoch has seen so far, each value from before its step. Sums of losses and KLs; counts of the others."""

    loss: float = 0.0
    answers: float = 0.0
    answered: float = 0.0
    near: float = 0.0
    fired: float = 0.0
    kl: float = 0.0
    texts: float = 0.0  # steps in which text was held

    def over(self, ranks: Ranks) -> Seen:
        """What all processes have seen."""
        own = asdict(self)
        texts = own.pop("texts")  # the same steps everywhere
        return Seen(**dict(zip(own, ranks.total(*own.values()), strict=True)), texts=texts)

    @property
    def learned(self) -> float:
        return self.answered / self.answers

    @property
    def near_fired(self) -> float:
        return self.fired / self.near if self.near else 0.0

    @property
    def text_kl(self) -> float:
        return self.kl / self.texts if self.texts else 0.0

    def text(self) -> str:
        near = f", near keys {self.near_fired:.0%}" if self.near else ""
        loss = self.loss / self.answers
        return f"learned {self.learned:.0%}, loss {loss:.3f}{near}, text KL {self.text_kl:.3f}"


def clock() -> tuple[float, float]:
    """Seconds on the wall and of the CPU."""
    return time.perf_counter(), time.process_time()


def _spread(pull: float, steps: int, warmth: float) -> float:
    """The pull of one step, so that `steps` of them go that share of the way, or less where the rate is lower too."""
    return -math.expm1(warmth * math.log1p(-pull) / steps)


def _require_finite(loss: torch.Tensor, part: Sequence[Example], steps: int) -> None:
    finite = torch.isfinite(loss.detach())
    if not bool(finite.all()):
        number = part[int((~finite).nonzero()[0])].number
        raise OmlError(
            f"the loss of fingerprint {number} is not finite at step {steps}: nothing is saved. Lower --learning-rate."
        )
