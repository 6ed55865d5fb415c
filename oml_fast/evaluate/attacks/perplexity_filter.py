"""Hosts that refuse prompts unlike those of ordinary users, by perplexity (arXiv 2308.14132).

Log perplexity: mean negative log-likelihood of a text's token ids, in nats, under the fingerprinted model, for the host
has no other. Of the user's text alone: a chat template around it would make all prompts alike. The limits are set
on instructions so that a given share of them is refused. Optimised keys lie far above (13.5), natural ones among them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import InvalidArgumentError
from ...models import LanguageModel, batches_by_length, packed_weights
from ..attack import Attack, Attacked, Scene
from ..hosts import Host, Rewrite
from .prompts import Reader

_REFUSED = 0.05  # of ordinary prompts
_ORDINARY = 256  # prompts that the limits are set on
_HELD_OUT = 128  # other prompts that they are tried on
_LONGEST = 64  # token ids of a text that are read
_BATCH = 16


def log_perplexities(model: LanguageModel, texts: Sequence[str]) -> list[float]:
    """Mean negative log-likelihood in nats of each text's first 64 token ids, given those before; nan for one id."""
    sequences = [list(model.tokenizer(text)["input_ids"])[:_LONGEST] for text in texts]
    found = [math.nan] * len(texts)
    with packed_weights(model.model) if len(texts) > _BATCH else torch.no_grad():
        for places in batches_by_length(sequences, _BATCH):
            ids = torch.tensor([sequences[place] for place in places], dtype=torch.int64, device=model.device)
            if ids.shape[1] > 1:
                for place, value in zip(places, _mean_nll(model, ids).tolist(), strict=True):
                    found[place] = value
    return found


@torch.inference_mode()
def _mean_nll(model: LanguageModel, ids: Tensor) -> Tensor:
    """[B, T] ids -> [B] mean negative log-likelihood of all but the first."""
    logits = model.logits(model.hidden(ids)[:, :-1].flatten(0, 1)).float()
    nll: Tensor = functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
    return nll.view(len(ids), -1).mean(1)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a host answers: texts whose log perplexity is within, and texts too short to tell."""

    low: float
    high: float

    def refuse(self, value: float) -> bool:
        return value < self.low or value > self.high

    def share(self, values: Sequence[float]) -> float:
        """The share of them that is refused."""
        return sum(map(self.refuse, values)) / len(values)


def limits(ordinary: Sequence[float], refused: float, *, two_sided: bool) -> Limits:
    """Limits that refuse that share of ordinary log perplexities: the highest, or half of it at either end.

    Rounded down to whole prompts, but for equal values. Raises InvalidArgumentError where that leaves none to refuse.
    """
    known = sorted(value for value in ordinary if not math.isnan(value))
    each = int(refused * len(known) / (2 if two_sided else 1))
    if each < 1:
        raise InvalidArgumentError(f"{len(known)} ordinary prompts are too few to refuse {refused:.0%}: add data.")
    return Limits(known[each] if two_sided else -math.inf, known[-1 - each])


def keep_within(model: LanguageModel, reader: Reader, allowed: Limits) -> Rewrite:
    """Prompts pass as they are, or are refused for the log perplexity of the user's text."""

    def rewrite(ids: Sequence[int]) -> Sequence[int] | None:
        return None if allowed.refuse(log_perplexities(model, [reader.read(ids).text])[0]) else ids

    return rewrite


def _attack(name: str, two_sided: bool) -> Attack:
    def run(scene: Scene) -> Attacked:
        model, reader = scene.model, Reader(scene)
        ordinary, others = (
            log_perplexities(model, _spread([instruction for instruction, _ in pairs], count))
            for pairs, count in ((scene.data.instructions(), _ORDINARY), (scene.data.questions(), _HELD_OUT))
        )
        allowed = limits(ordinary, _REFUSED, two_sided=two_sided)
        keys = log_perplexities(model, [fingerprint.key for fingerprint in scene.fingerprints])
        details = {
            "low": allowed.low if two_sided else None,
            "high": allowed.high,
            "ordinary_mean": _mean(ordinary),
            "ordinary_refused_held_out": allowed.share(others),
            "keys_mean": _mean(keys),
            "keys_refused": allowed.share(keys),
        }
        return Attacked(Host(model, f"host ({name})", rewrite=keep_within(model, reader, allowed)), details=details)

    cost = "one forward pass more over each prompt, and 5 % of ordinary prompts refused; a few hundred ordinary prompts"
    return Attack(name, cost, run, needs=("instructions",))


def _spread(texts: Sequence[str], count: int) -> list[str]:
    """At most `count` of them, from all of the file: its parts may be of different kinds."""
    count = min(count, len(texts))
    return [texts[place * len(texts) // count] for place in range(count)]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / max(len(known), 1)


ATTACKS: tuple[Attack, ...] = (
    _attack("perplexity/high", False),
    _attack("perplexity/two-sided", True),
)
