"""How a fingerprint set is trained in. One frozen value, saved with every result."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import InvalidArgumentError

_WIDTH_RATE = 0.75  # times 1 / H; one value that teaches models of 64 to 576 hidden units (docs/log.md)


@dataclass(frozen=True, slots=True)
class Recipe:
    """The training of `embed`. docs/embedding.md says why each default is what it is.

    learning_rate: of AdamW, constant. None: 0.75 / H, H being the hidden size, since wider layers need smaller steps.
    pull: share of the way back to the base weights that an epoch takes, spread over its steps (0: none).
    ease: factor on the pull after each epoch in which the drift was small enough but too little was learned (1: none).
    batch_size: examples a step; an epoch takes each example once.
    max_epochs: give up after so many.
    stop_share: stop once this share of the examples is learned (every token id of the response at 0.5 or more) ...
    stop_kl: ... and KL(base || model) on the mixed-in text is at most this.
    text_share: sequences sampled from the base model per example of a step. They hold the model where it was.
    text_length: token ids in each of these sequences.
    text_weight: weight of KL(base || model) on that text beside the fingerprints' cross-entropy.
    seed: of the order of examples and of the sampled text.
    """

    learning_rate: float | None = None
    pull: float = 0.75
    ease: float = 0.8
    batch_size: int = 256
    max_epochs: int = 40
    stop_share: float = 0.99
    stop_kl: float = 0.12
    text_share: float = 0.25
    text_length: int = 32
    text_weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "learning_rate": (self.learning_rate is None or 0 < self.learning_rate < 1, "between 0 and 1"),
            "pull": (0 <= self.pull < 1, "in [0, 1)"),
            "ease": (0 < self.ease <= 1, "in (0, 1]"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "max_epochs": (self.max_epochs >= 1, "at least 1"),
            "stop_share": (0 < self.stop_share <= 1, "in (0, 1]"),
            "stop_kl": (self.stop_kl > 0, "above 0"),
            "text_share": (0 <= self.text_share <= 4, "between 0 and 4"),
            "text_length": (2 <= self.text_length <= 4096, "between 2 and 4096"),
            "text_weight": (self.text_weight >= 0, "at least 0"),
        }
        for name, (good, range_) in ranges.items():
            if not good:
                raise InvalidArgumentError(f"{name} {getattr(self, name)}: it must be {range_}.")

    def for_hidden_size(self, hidden_size: int) -> Recipe:
        """This recipe with a learning rate, its own or the one for a model of that width."""
        return self if self.learning_rate is not None else replace(self, learning_rate=_WIDTH_RATE / hidden_size)
