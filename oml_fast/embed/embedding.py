"""embed: a fingerprint set and its base model -> a fingerprinted model."""

from __future__ import annotations

import math
import resource
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import FingerprintFormatError, InvalidArgumentError, OmlError
from ..fingerprint import FingerprintSet
from ..measure import BaseView, Drift, head_copy
from ..models import ALONE, LanguageModel, Ranks, give_freed_memory_back
from .budget import Budget, budget
from .checkpoint import Checkpoints
from .material import Material
from .presets import PRESETS
from .recipe import Recipe
from .text import sample_texts
from .training import Trainer, clock

_HELD_OUT = 32  # sequences on which the drift is measured, none of them trained on
_HELD_OUT_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Embedding:
    """How an embedding went. `seconds` and `cpu_seconds` are of all but measuring the drift: the final check is in, and
    what was spent before a kill."""

    epochs: int
    steps: int
    stopped: str
    seconds: float
    cpu_seconds: float
    train_tokens: int
    peak_memory_bytes: int
    drift: Drift
    budget: Budget
    recipe: Recipe
    set_digest: str

    @property
    def fsr(self) -> float:
        """Of all keys, in the final check."""
        return self.budget.fsr

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values, nothing secret."""
        return {
            "fsr": self.fsr,
            "epochs": self.epochs,
            "steps": self.steps,
            "stopped": self.stopped,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "train_tokens_per_second": self.train_tokens / self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "kl_to_base": self.drift.kl,
            "kl_to_base_standard_error": self.drift.kl_standard_error,
            "perplexity_base": self.drift.perplexity_base,
            "perplexity": self.drift.perplexity,
            "budget": asdict(self.budget),
            "backend": "torch",
            "set_digest": self.set_digest,
            "recipe": asdict(self.recipe),
        }


def embed(
    model: LanguageModel,
    fingerprints: FingerprintSet,
    *,
    recipe: Recipe | None = None,
    progress: bool = False,
    ranks: Ranks = ALONE,
    checkpoints: Path | None = None,
    checkpoint_every: int = 100,
    keep_base: str = "device",
) -> Embedding:
    """Train `fingerprints` into `model`, their base model, in place, as `recipe` says (default: PRESETS["harmless"]).

    Sequences have their exact lengths, the head runs at the positions that count only. ranks: the processes that train
    a sharded model together. checkpoints: a folder that keeps the state after every so many steps; what was killed goes
    on from there with the same bits. keep_base: where the base weights are meanwhile: device, host or file (base.py);
    with the latter two what the base says is kept on the host.
    Raises InvalidArgumentError where set, model or checkpoint do not belong together, OmlError when the loss is not
    finite.
    """
    recipe = (recipe or PRESETS["harmless"]).for_hidden_size(model.head()[0].shape[1])
    _check(model, fingerprints)
    head = head_copy(model)
    held_out = BaseView(model, *sample_texts(model, _HELD_OUT, _HELD_OUT_LENGTH, recipe.seed + 1), head)
    started = clock()
    of = {"set": fingerprints.digest(), "base model": model.digest, "recipe": asdict(recipe)}
    kept = Checkpoints(checkpoints, checkpoint_every, of, ranks) if checkpoints is not None else None
    material = Material(model, fingerprints, recipe, head, on_host=keep_base != "device")
    give_freed_memory_back()
    trainer = Trainer(model, material, recipe, ranks, kept, keep_base)
    epochs, stopped = trainer.train(progress)
    trained = clock()
    drift = held_out.drift(model)
    if not math.isfinite(drift.kl):  # the last step is the one whose loss nobody has seen
        raise OmlError("the trained weights are not finite: nothing is saved. Lower --learning-rate.")
    measured = clock()
    worth = budget(model, fingerprints, drift)
    laps = zip(trainer.spent_before, started, trained, measured, clock(), strict=True)
    seconds, cpu_seconds = (before + b - a + d - c for before, a, b, c, d in laps)
    return Embedding(
        epochs=epochs,
        steps=trainer.steps,
        stopped=stopped,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        train_tokens=int(ranks.total(trainer.tokens)[0]),
        peak_memory_bytes=_peak_memory(model.device),
        drift=drift,
        budget=worth,
        recipe=recipe,
        set_digest=fingerprints.digest(),
    )


def _check(model: LanguageModel, fingerprints: FingerprintSet) -> None:
    if not len(fingerprints):
        raise InvalidArgumentError("the set holds no fingerprint: generate some first.")
    for what, own, wanted in (
        ("tokenizer", model.tokenizer_digest, fingerprints.tokenizer_digest),
        ("base model", model.digest, fingerprints.base_model_digest),
    ):
        if not wanted:
            raise FingerprintFormatError(
                f"this imported set does not say which {what} it is for: import it again, with --model BASE_MODEL."
            )
        if own != wanted:
            raise FingerprintFormatError(
                f"these fingerprints were made with another {what} (digest {wanted[:12]}) than {model.name} "
                f"(digest {own[:12]}): name the base model they were made with, {fingerprints.base_model}."
            )


def _peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch held on a GPU, or that this process had in memory since it started on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
