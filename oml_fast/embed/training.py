"""The loop of an embedding: what is seen in a step, and how its gradients change the weights."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from ..errors import OmlError
from ..models import LanguageModel
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
    """The loop. One epoch is one pass over the keys; a step adds up the gradients of all that goes with its batch."""

    def __init__(self, model: LanguageModel, material: Material, recipe: Recipe) -> None:
        assert recipe.learning_rate is not None
        self._model, self._material, self._recipe = model, material, recipe
        self._order = random.Random(recipe.seed)  # noqa: S311 - the order of training examples is no secret
        self._objective: Objective = (
            MinimumKL(recipe.margin, recipe.margin_step, recipe.cap)
            if recipe.objective == "minimum_kl"
            else CrossEntropy()
        )
        whitened = whitening(model, material.inputs(), recipe.whitening) if recipe.whitening else None
        self._weights = trained_weights(model, recipe.write_to, whitened, recipe.seed, seen_rounded=recipe.rounded > 0)
        self._optimizer = AnchoredAdamW(self._weights, recipe.learning_rate, 0.0)
        self._pull = recipe.pull
        self.steps = self.tokens = 0

    def train(self, progress: bool) -> tuple[int, str]:
        """How many epochs it took, and why it stopped: "learned" or "max_epochs"."""
        recipe, stopped = self._recipe, "max_epochs"
        text_kl = math.inf if self._material.texts.items else 0.0
        with tqdm(total=recipe.max_epochs, desc="embed", unit="epoch", disable=None if progress else True) as bar:
            for epoch in range(1, recipe.max_epochs + 1):
                seen = self._epoch(self._warmth(epoch))
                bar.set_postfix_str(seen.text())
                bar.update()
                # All of these are from before each step, so an epoch too old: signs that a check is worth its cost.
                text_kl = seen.text_kl if seen.kls else text_kl
                if text_kl <= recipe.stop_kl and seen.near_fired <= recipe.stop_near:
                    if seen.learned >= 0.9 and self._is_learned():
                        stopped = "learned"
                        break
                    self._pull *= recipe.ease
        if recipe.final_scale != 1:
            for weight in self._weights:
                weight.change.shrink(recipe.final_scale)
        self._write(AS_TRAINED)
        self._model.model.requires_grad_(True)  # as it came: whoever tunes this model on tunes all of it
        return epoch, stopped

    def _epoch(self, warmth: float) -> Seen:
        """One pass over the keys, at `warmth` times the learning rate and pull."""
        recipe, seen = self._recipe, Seen()
        order = list(batches(self._material.keys.items, recipe.batch_size, self._order))
        assert recipe.learning_rate is not None
        self._optimizer.learning_rate = warmth * recipe.learning_rate
        self._optimizer.pull = _spread(self._pull, len(order), warmth)
        for batch in order:
            view = self._draw_view()
            if view is not AS_TRAINED:
                self._write(view)
            self._answer(self._material.keys, batch, len(batch), seen)
            numbers = [self._material.keys.items[place].number for place in batch]
            wrapped = self._material.wrapped.draw(round(recipe.templates * len(batch)), self._order, numbers)
            self._answer(self._material.wrapped, wrapped, len(batch))
            self._hold_near(self._material.near.draw(recipe.near_keys * len(batch), self._order, numbers), seen)
            if not view.bits:  # rounding moves the answers to text more than any fingerprint does
                material = self._material
                self._hold_text(material.texts, material.texts.draw(material.texts_a_step, self._order), seen)
                self._hold_text(material.chats, material.chats.draw(material.chats_a_step, self._order))
            self._optimizer.step()
            self.steps += 1
        return seen

    def _answer(self, part: Part[Example], places: Sequence[int], batch_size: int, seen: Seen | None = None) -> None:
        """Gradients of the objective where these keys are answered, a mean over the batch's examples."""
        for micro in example_batches([part.items[place] for place in places]):
            own = [places[place] for place in micro]
            examples = [part.items[place] for place in own]
            base = part.base.logits(own).unflatten(0, (len(own), -1)) if part.base else None
            loss, learned = response_loss(self._model, examples, self._objective, base)
            _require_finite(loss, examples, self.steps)
            (loss.sum() / batch_size).backward()
            self.tokens += sum(len(example.ids) for example in examples)
            if seen is not None:
                seen.losses += loss.detach().tolist()
                seen.answers += learned.tolist()

    def _hold_near(self, places: Sequence[int], seen: Seen) -> None:
        """Gradients of KL(base || model) where near keys would be answered, a sum over those of one key."""
        part, weight = self._material.near, self._recipe.near_weight * self._recipe.near_keys
        for micro in micro_batches([part.items[place].ids for place in places]):
            own = [places[place] for place in micro]
            near = [part.items[place] for place in own]
            assert part.base is not None
            kl, best = stay_kl(self._model, [item.ids for item in near], part.base.log_probs(own))
            (weight * kl.sum() / len(places)).backward()
            self.tokens += sum(len(item.ids) for item in near)
            seen.near += [one in item.firsts for one, item in zip(best.tolist(), near, strict=True)]

    def _hold_text(self, part: Part[Text], places: Sequence[int], seen: Seen | None = None) -> None:
        """Gradients of KL(base || model) on text or on chats, a mean over the positions that count."""
        total = 0.0
        for micro in micro_batches([part.items[place].sequence for place in places]):
            own = [places[place] for place in micro]
            texts = [part.items[place].sequence for place in own]
            assert part.base is not None
            start = part.items[own[0]].start  # all of one part and one length have the same
            kl = text_kl(self._model, texts, part.base.log_probs(own), start) * (len(own) / len(places))
            (self._recipe.text_weight * kl).backward()
            total += float(kl.detach())
            self.tokens += sum(map(len, texts))
        if places and seen is not None:
            seen.kls.append(total)

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
        part, losses, learned = self._material.keys, 0.0, 0
        for micro in example_batches(part.items):
            base = part.base.logits(micro).unflatten(0, (len(micro), -1)) if part.base else None
            loss, answers = response_loss(self._model, [part.items[p] for p in micro], self._objective, base)
            losses, learned = losses + float(loss.sum()), learned + int(answers.sum())
        count, recipe = len(part.items), self._recipe
        return learned / count >= recipe.stop_share and (not recipe.stop_loss or losses / count < recipe.stop_loss)


@dataclass(slots=True)
class Seen:
    """What one epoch has seen, each value from before its step."""

    losses: list[float] = field(default_factory=list)
    answers: list[bool] = field(default_factory=list)
    near: list[bool] = field(default_factory=list)
    kls: list[float] = field(default_factory=list)

    @property
    def learned(self) -> float:
        return sum(self.answers) / len(self.answers)

    @property
    def near_fired(self) -> float:
        return sum(self.near) / len(self.near) if self.near else 0.0

    @property
    def text_kl(self) -> float:
        return sum(self.kls) / len(self.kls) if self.kls else 0.0

    def text(self) -> str:
        near = f", near keys {self.near_fired:.0%}" if self.near else ""
        loss = sum(self.losses) / len(self.losses)
        return f"learned {self.learned:.0%}, loss {loss:.3f}{near}, text KL {self.text_kl:.3f}"


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
