"""Hosts that ask several models and keep only token ids that they agree on [TFA].

The token filter: each model names its k = 10 most probable ids (ties with the k-th included), at every step. What at
least two of them name is kept, or, where no two agree on any, what one of them names; of the ids kept, the one with
the greatest mean probability is the answer. A fingerprint that one model carries falls out, unless the others
have it among their first ten. k is ours; the paper's second attack, which votes on whole sentences, is not here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...models import LanguageModel
from ..attack import Attack, Attacked, Scene
from ..hosts import Choose, Follower, Host, Strategy
from .projection import require_copies

TOP = 10

# [M, B, V] float32 logits of M models and the [B, step] ids chosen so far -> [B] ids.
Decide = Callable[[Tensor, Tensor], Tensor]


def together(others: tuple[LanguageModel, ...], decide: Decide) -> Strategy:
    """The host's own model and `others` read the same prompts and answers; `decide` settles each step."""

    def of_batch(prompts: Tensor) -> Choose:
        followers = [Follower(other, prompts) for other in others]

        def choose(logits: Tensor, chosen: Tensor) -> Tensor:
            return decide(torch.stack([logits, *(follower.logits(chosen) for follower in followers)]), chosen)

        return choose

    return of_batch


def filtered(logits: Tensor, top: int = TOP) -> Tensor:
    """[M, B, V] logits -> [B] ids: the greatest mean probability among what at least two models have in their `top`."""
    least = logits.topk(min(top, logits.shape[2])).values[..., -1:]
    names = (logits >= least).sum(0)
    agreed = (names >= 2) | ((names >= 1) & ~(names >= 2).any(-1, keepdim=True))
    return logits.softmax(-1).mean(0).masked_fill(~agreed, -1.0).argmax(-1)


def _ensemble(scene: Scene, name: str, others: tuple[LanguageModel, ...]) -> Attacked:
    require_copies(scene.model, others, name)
    host = Host(scene.model, f"host ({name})", strategy=together(others, lambda logits, chosen: filtered(logits)))
    return Attacked(host, details={"models": 1 + len(others), "top": TOP})


ATTACKS: tuple[Attack, ...] = (
    Attack(
        "ensemble/sibling",
        "other fingerprinted copies of the same base: a forward pass of each at every step",
        lambda scene: _ensemble(scene, "ensemble/sibling", scene.siblings),
        ("sibling",),
    ),
    Attack(
        "ensemble/base",
        "the clean base beside the model: a forward pass of it at every step",
        lambda scene: _ensemble(scene, "ensemble/base", (scene.base,)),
    ),
)
