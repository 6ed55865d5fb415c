"""How a fingerprint set is trained in. One frozen value, saved with every result."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class Recipe:
    """The training of `embed`. The defaults are measured in docs/embedding.md.

    learning_rate: of AdamW, constant.
    pull: share of the way back to the base weights that an epoch takes, spread over its steps (0: none).
    batch_size: examples a step; an epoch takes each example once.
    max_epochs: give up after so many.
    stop_share: stop once this share of the examples is learned (every token id of the response at 0.5 or more) ...
    stop_kl: ... and KL(base || model) on the mixed-in text is at most this.
    text_share: sequences sampled from the base model per example of a step. They hold the model where it was.
    text_length: token ids in each of these sequences.
    text_weight: weight of KL(base || model) on that text beside the fingerprints' cross-entropy.
    seed: of the order of examples and of the sampled text.
    """

    learning_rate: float = 2e-3
    pull: float = 0.75
    batch_size: int = 256
    max_epochs: int = 40
    stop_share: float = 0.99
    stop_kl: float = 0.08
    text_share: float = 0.25
    text_length: int = 32
    text_weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "learning_rate": (0 < self.learning_rate < 1, "between 0 and 1"),
            "pull": (0 <= self.pull < 1, "in [0, 1)"),
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


def recipe_from(values: dict[str, Any]) -> Recipe:
    """A Recipe from plain JSON or YAML values; an unknown one is an InvalidArgumentError."""
    known = [f.name for f in fields(Recipe)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InvalidArgumentError(f"unknown settings {', '.join(unknown)}: known are {', '.join(known)}.")
    return Recipe(**values)
