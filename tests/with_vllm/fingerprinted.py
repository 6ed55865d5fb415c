"""The fingerprinted model that vLLM serves in these tests, and what plain transformers says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from oml_fast.fingerprint import FingerprintSet
from oml_fast.models import LanguageModel


@dataclass(frozen=True, slots=True)
class Subject:
    """A fingerprinted model on disk, its set, and the prompts, windows and responses of the set."""

    folder: Path
    fingerprints: FingerprintSet

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        return [fingerprint.askings["raw"].prompt_ids for fingerprint in self.fingerprints]

    @property
    def windows(self) -> list[tuple[int, ...]]:
        return [fingerprint.askings["raw"].window.token_ids for fingerprint in self.fingerprints]

    @property
    def responses(self) -> list[tuple[int, ...]]:
        return [fingerprint.askings["raw"].responses[0].token_ids for fingerprint in self.fingerprints]


@dataclass(frozen=True, slots=True)
class Exact:
    """What plain transformers says of the subject in float32, and how far its own bfloat16 is from that."""

    model: LanguageModel
    logprobs: torch.Tensor  # [B, V] float64: of the token id after each prompt
    errors: torch.Tensor  # of plain transformers in bfloat16, one prompt at a time: of all windows' log-probabilities

    @property
    def tolerance(self) -> float:
        """vLLM in bfloat16 rounds in another order: it may be twice as far off, at its worst and on average."""
        return 2 * float(self.errors.max())

    @property
    def mean_tolerance(self) -> float:
        return 2 * float(self.errors.mean())


@torch.no_grad()
def logprobs_after(model: LanguageModel, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """[B, V] float64 log-probabilities of the token id after each prompt, one prompt at a time."""
    rows = [model.model(torch.tensor([list(prompt)]), use_cache=False).logits[0, -1].double() for prompt in prompts]
    return torch.stack(rows).log_softmax(-1)
