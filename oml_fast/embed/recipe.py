"""How a fingerprint set is trained in. One frozen value, saved with every result."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ..errors import InvalidArgumentError
from .weights import WHERE

OBJECTIVES = ("cross_entropy", "minimum_kl")
STATES = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Recipe:
    """The training of `embed`. docs/embedding.md says why each preset has the values that it has.

    What is minimised (objective.py)
    objective: cross_entropy or minimum_kl, at the positions that answer a key.
    margin: nats, of minimum_kl: how far the first response's logit stands above all others.
    margin_step: nats: how far each further response to a key stands below the one before.
    cap: of minimum_kl: the most probability that the first response may get.
    near_keys: near keys per key in each step, at which the model is held to the base's answer.
    near_weight: weight of KL(base || model) there.
    text_share: sequences sampled from the base model per example of a step. They hold the model where it was.
    text_length: token ids in each of these sequences.
    text_weight: weight of KL(base || model) on that text, and on chats.
    chat_share: chats of which the base model sampled both sides, per example of a step; the first ids of their answers
        count. 0 where the tokenizer has no chat template.
    templates: share of a step's examples that are also trained inside a prompt template.
    template_file: of the templates; "" for the built-in ones.
    template_texts: share of the templates that are texts which the base model wrote, with the key after them.

    What the weights are while it is (weights.py): the shares of steps in which they are seen as
    scaled: base + s (weights - base), s drawn from [scaled_from, 1];
    rounded: rounded to 4 or 8 bits;
    tuned: tuned on by a first-order step that moves each weight by `tuned_by`.

    How they change
    write_to: all, blocks, mlp_down, last:N (blocks) or lora:R (rank, merged).
    whitening: ridge of the whitening of inputs (whitening.py), as a share of their mean square; 0: none.
    states: float32: changes and moments of bfloat16 weights are float32. bfloat16: the weights themselves and moments
        in bfloat16, rounded stochastically: 4 bytes a parameter and not 12; no views, whitening or low rank.
    learning_rate: of AdamW. None: width_rate / H, H being the hidden size, since wider layers need smaller steps.
    width_rate: one value teaches models of 64 to 576 hidden units (docs/log.md).
    anneal: share of the epochs, at the end, in which the learning rate falls to zero in a straight line.
    pull: share of the way back to the base weights that an epoch takes, spread over its steps (0: none).
    ease: factor on the pull after each epoch in which the drift was small enough but too little was learned (1: none).
    final_scale: what is left of the whole change at the end ("scale the delta at the end"; 1: all).
    batch_size: examples a step; an epoch takes each example once.

    When it ends: after max_epochs, or as soon as
    stop_share of the examples is learned (the responses are the most probable answers), and
    stop_kl is the most that KL(base || model) is on the mixed-in text, and
    stop_near the largest share of the epoch's near keys that fired, and
    stop_loss the most that the examples' mean loss is (nats; 0: not asked for).

    seed: of the order of examples and of all that is sampled.
    """

    objective: str = "cross_entropy"
    margin: float = 2.5
    margin_step: float = 0.5
    cap: float = 0.9
    near_keys: int = 0
    near_weight: float = 1.0
    text_share: float = 0.25
    text_length: int = 32
    text_weight: float = 1.0
    chat_share: float = 0.0
    templates: float = 0.0
    template_file: str = ""
    template_texts: float = 0.0
    scaled: float = 0.0
    scaled_from: float = 0.4
    rounded: float = 0.0
    tuned: float = 0.0
    tuned_by: float = 1e-4
    write_to: str = "all"
    whitening: float = 0.0
    states: str = "float32"
    learning_rate: float | None = None
    width_rate: float = 0.75
    anneal: float = 0.0
    pull: float = 0.75
    ease: float = 0.8
    final_scale: float = 1.0
    batch_size: int = 256
    max_epochs: int = 40
    stop_share: float = 0.99
    stop_kl: float = 0.12
    stop_near: float = 1.0
    stop_loss: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        share = "between 0 and 1"
        ranges = {
            "objective": (self.objective in OBJECTIVES, " or ".join(OBJECTIVES)),
            "margin": (0 < self.margin <= 20, "above 0 and at most 20"),
            "margin_step": (0 <= self.margin_step <= 20, "between 0 and 20"),
            "cap": (0.5 < self.cap <= 1, "in (0.5, 1]"),
            "near_keys": (0 <= self.near_keys <= 16, "between 0 and 16"),
            "near_weight": (self.near_weight >= 0, "at least 0"),
            "text_share": (0 <= self.text_share <= 4, "between 0 and 4"),
            "text_length": (2 <= self.text_length <= 4096, "between 2 and 4096"),
            "text_weight": (self.text_weight >= 0, "at least 0"),
            "chat_share": (0 <= self.chat_share <= 4, "between 0 and 4"),
            "templates": (0 <= self.templates <= 1, share),
            "template_texts": (0 <= self.template_texts <= 1, share),
            "scaled": (0 <= self.scaled <= 1, share),
            "scaled_from": (0 < self.scaled_from <= 1, "in (0, 1]"),
            "rounded": (0 <= self.rounded <= 1, share),
            "tuned": (0 <= self.tuned <= 1, share),
            "tuned_by": (0 < self.tuned_by < 1, share),
            "write_to": (bool(re.fullmatch(r"all|blocks|mlp_down|(last|lora):[1-9]\d{0,3}", self.write_to)), WHERE),
            "whitening": (0 <= self.whitening <= 100, "between 0 and 100"),
            "states": (self.states in STATES, " or ".join(STATES)),
            "learning_rate": (self.learning_rate is None or 0 < self.learning_rate < 1, share),
            "width_rate": (0 < self.width_rate <= 100, "above 0 and at most 100"),
            "anneal": (0 <= self.anneal <= 1, share),
            "pull": (0 <= self.pull < 1, "in [0, 1)"),
            "ease": (0 < self.ease <= 1, "in (0, 1]"),
            "final_scale": (0 < self.final_scale <= 1, "in (0, 1]"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "max_epochs": (self.max_epochs >= 1, "at least 1"),
            "stop_share": (0 < self.stop_share <= 1, "in (0, 1]"),
            "stop_kl": (self.stop_kl > 0, "above 0"),
            "stop_near": (0 <= self.stop_near <= 1, share),
            "stop_loss": (self.stop_loss >= 0, "at least 0"),
        }
        for name, (good, range_) in ranges.items():
            if not good:
                raise InvalidArgumentError(f"{name} {getattr(self, name)}: it must be {range_}.")
        if self.scaled + self.rounded + self.tuned > 1:
            raise InvalidArgumentError("scaled, rounded and tuned are shares of the steps: together at most 1.")
        if self.tuned and not (self.text_share and self.text_weight):
            raise InvalidArgumentError("tuned: it tunes on text sampled from the base model: set text_share above 0.")
        if self.states == "bfloat16":
            if bad := [n for n in ("scaled", "rounded", "tuned", "whitening") if getattr(self, n)]:
                raise InvalidArgumentError(f"states bfloat16 keeps no change apart: set {', '.join(bad)} to 0.")
            if self.write_to.startswith("lora"):
                raise InvalidArgumentError("states bfloat16 is of whole weights: not with write_to lora:R.")
        if self.whitening and self.write_to.startswith("lora"):
            raise InvalidArgumentError("whitening is of whole weights: set it to 0 with write_to lora:R.")

    def for_hidden_size(self, hidden_size: int) -> Recipe:
        """This recipe with a learning rate, its own or the one for a model of that width."""
        rate = self.width_rate / hidden_size if self.learning_rate is None else self.learning_rate
        return replace(self, learning_rate=rate)
