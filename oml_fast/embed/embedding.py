"""embed: a fingerprint set and its base model -> a fingerprinted model. One loop, read from top to bottom."""

from __future__ import annotations

import math
import random
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm import tqdm

from ..errors import FingerprintFormatError, InvalidArgumentError, OmlError
from ..fingerprint import FingerprintSet
from ..measure import BaseView, Drift
from ..models import HfCompleter, LanguageModel, batches_by_length
from ..verify import verify
from .data import Example, batches, examples, micro_batches
from .objective import response_loss, text_kl
from .optimizer import AnchoredAdamW
from .recipe import Recipe
from .text import sample_texts

_LEARNED = 0.5  # a token id with more than half of the mass is the greedy choice, whatever the others do
_TEXTS_KEPT = 4  # times as many texts are sampled as a step takes
_HELD_OUT = 32  # sequences on which the drift is measured, none of them trained on
_HELD_OUT_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Embedding:
    """How an embedding went. `seconds` and `cpu_seconds` are of all but measuring the drift: the final check is in."""

    fsr: float
    epochs: int
    steps: int
    stopped: str
    seconds: float
    cpu_seconds: float
    train_tokens: int
    peak_memory_bytes: int
    drift: Drift
    recipe: Recipe
    set_digest: str

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
            "backend": "torch",
            "set_digest": self.set_digest,
            "recipe": asdict(self.recipe),
        }


def embed(
    model: LanguageModel, fingerprints: FingerprintSet, *, recipe: Recipe | None = None, progress: bool = False
) -> Embedding:
    """Train `fingerprints` into `model`, their base model, in place [SF 3.2].

    Cross-entropy at response positions, KL to the base model on text that the base model wrote, AdamW on float32
    masters, a pull toward the base weights. Sequences have their exact lengths, the head runs at response positions
    only. Raises InvalidArgumentError where set and model do not belong together, OmlError when the loss is not finite.
    """
    recipe = (recipe or Recipe()).for_hidden_size(model.head()[0].shape[1])
    assert recipe.learning_rate is not None
    _check(model, fingerprints)
    held_out = BaseView(model, *sample_texts(model, _HELD_OUT, _HELD_OUT_LENGTH, recipe.seed + 1))
    started, cpu_started = time.perf_counter(), time.process_time()
    order = random.Random(recipe.seed)  # noqa: S311 - the order of training examples is no secret
    items, per_key = examples(fingerprints), fingerprints.settings.responses_per_key
    steps_per_epoch = math.ceil(len(items) / recipe.batch_size)
    texts_per_step = math.ceil(recipe.text_share * min(recipe.batch_size, len(items)))
    num_texts = _TEXTS_KEPT * texts_per_step if recipe.text_weight else 0
    anchor = BaseView(model, *sample_texts(model, num_texts, recipe.text_length, recipe.seed))
    pull = recipe.pull
    optimizer = AnchoredAdamW(model.model.parameters(), recipe.learning_rate, _spread(pull, steps_per_epoch))
    steps = tokens = 0
    stopped = "max_epochs"
    with tqdm(total=recipe.max_epochs, desc="embed", unit="epoch", disable=None if progress else True) as bar:
        for epoch in range(1, recipe.max_epochs + 1):  # noqa: B007 - the number of epochs is reported
            losses, learned, kls = [], 0, []
            for batch in batches(items, recipe.batch_size, order):
                for part in micro_batches(batch):
                    loss, probs = response_loss(model, part)
                    _require_finite(loss, part, steps)
                    (loss.sum() / len(batch)).backward()
                    losses.append(float(loss.detach().sum()))
                    learned += _learned(probs, per_key)
                    tokens += sum(len(example.ids) for example in part)
                if len(anchor):
                    chosen = order.sample(range(len(anchor)), min(texts_per_step, len(anchor)))
                    kl = 0.0
                    for places in batches_by_length([anchor.sequences[place] for place in chosen], recipe.batch_size):
                        own = [chosen[place] for place in places]
                        texts = [anchor.sequences[place] for place in own]
                        part_kl = text_kl(model, texts, anchor.log_probs(own)) * (len(own) / len(chosen))
                        (recipe.text_weight * part_kl).backward()
                        kl += float(part_kl.detach())
                        tokens += sum(len(text) for text in texts)
                    kls.append(kl)
                optimizer.step()
                steps += 1
            mean_kl = sum(kls) / len(kls) if kls else 0.0
            bar.set_postfix_str(f"loss {sum(losses) / len(items):.3f}, text KL {mean_kl:.3f}")
            bar.update()
            # Both numbers are from before each step, so an epoch too old: cheap signs that a check is worth its cost.
            if mean_kl <= recipe.stop_kl:
                if learned >= 0.9 * len(items) and _share_learned(model, items, per_key) >= recipe.stop_share:
                    stopped = "learned"
                    break
                pull *= recipe.ease
                optimizer.pull = _spread(pull, steps_per_epoch)
    fsr = verify(fingerprints, HfCompleter(model), test="window", mode="fixed").fsr
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    drift = held_out.drift(model)
    if not math.isfinite(drift.kl):  # the last step is the one whose loss nobody has seen
        raise OmlError("the trained weights are not finite: nothing is saved. Lower --learning-rate.")
    return Embedding(
        fsr=fsr,
        epochs=epoch,
        steps=steps,
        stopped=stopped,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        train_tokens=tokens,
        peak_memory_bytes=_peak_memory(model.device),
        drift=drift,
        recipe=recipe,
        set_digest=fingerprints.digest(),
    )


def _spread(pull: float, steps: int) -> float:
    """The pull of one step, so that `steps` of them go that share of the way."""
    return -math.expm1(math.log1p(-pull) / steps)


@torch.no_grad()
def _share_learned(model: LanguageModel, items: Sequence[Example], per_key: int) -> float:
    """The share of examples that are learned."""
    learned = sum(_learned(response_loss(model, part)[1], per_key) for part in micro_batches(items))
    return learned / len(items)


def _learned(probs: torch.Tensor, per_key: int) -> int:
    """How many examples [B, R] have enough mass on each id; the responses to one key share that of its first id."""
    return int(((probs[:, 0] >= _LEARNED / per_key) & (probs[:, 1:] >= _LEARNED).all(1)).sum())


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


def _require_finite(loss: torch.Tensor, part: Sequence[Example], steps: int) -> None:
    finite = torch.isfinite(loss.detach())
    if not bool(finite.all()):
        number = part[int((~finite).nonzero()[0])].number
        raise OmlError(
            f"the loss of fingerprint {number} is not finite at step {steps}: nothing is saved. Lower --learning-rate."
        )


def _peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch held on a GPU, or that this process had in memory since it started on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
