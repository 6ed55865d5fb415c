"""Hosts that allow an answer to begin only with what an unmarked model finds likely: ours, from [SF 3.1].

Nucleus projection: the first token id is the fingerprinted model's best among those in the nucleus of another model,
at the nucleus threshold 0.8. Perinucleus responses lie just outside the clean base's nucleus by construction [SF 3.1]:
with the clean base none is left. A sibling, another fingerprinted copy of the base, is nearly as good, for at each
key of one set it answers as the base does, but for what training did to it.
Only the first step is projected: every response begins outside the nucleus, and its later ids are the base's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InvalidArgumentError
from ...models import LanguageModel
from ..attack import Attack, Attacked, Scene
from ..hosts import Choose, Follower, Host, Strategy

THRESHOLD = 0.8
STEPS = 1


def nucleus(logits: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """[B, V] logits -> [B, V] bool: the shortest prefix, by p falling and id rising, whose mass reaches `threshold`."""
    ordered, order = torch.sort(logits.double(), dim=-1, descending=True, stable=True)
    reached = ordered.softmax(-1).cumsum(-1) >= threshold
    outside = reached.roll(1, -1)  # after an id that reached it
    outside[:, 0] = False
    return torch.zeros_like(outside).scatter_(1, order, ~outside)


def projecting(judge: LanguageModel, threshold: float = THRESHOLD, steps: int = STEPS) -> Strategy:
    """In the first `steps` steps the best id inside the judge's nucleus; greedy afterwards."""

    def of_batch(prompts: Tensor) -> Choose:
        follower = Follower(judge, prompts)

        def choose(logits: Tensor, chosen: Tensor) -> Tensor:
            if chosen.shape[1] >= steps:
                return logits.argmax(-1)
            return logits.masked_fill(~nucleus(follower.logits(chosen), threshold), -torch.inf).argmax(-1)

        return choose

    return of_batch


def require_copies(model: LanguageModel, others: tuple[LanguageModel, ...], name: str) -> None:
    """Raise InvalidArgumentError unless there are `others`, and their token ids mean what those of `model` mean."""
    if not others:
        raise InvalidArgumentError(f"{name} needs another fingerprinted copy of the base: name one with --sibling.")
    for other in others:
        if other.tokenizer_digest != model.tokenizer_digest or other.vocabulary != model.vocabulary:
            raise InvalidArgumentError(
                f"{name}: {other.name} ({other.vocabulary} token ids) has another tokenizer or vocabulary than "
                f"{model.name} ({model.vocabulary}): name a copy of the same base."
            )


def _project(scene: Scene, name: str, judges: tuple[LanguageModel, ...]) -> Attacked:
    require_copies(scene.model, judges, name)
    host = Host(scene.model, f"host ({name})", strategy=projecting(judges[0]))
    return Attacked(host, details={"threshold": THRESHOLD, "steps": STEPS})


ATTACKS: tuple[Attack, ...] = (
    Attack(
        "projection/base",
        "the clean base beside the model: one forward pass of it for each prompt",
        lambda scene: _project(scene, "projection/base", (scene.base,)),
    ),
    Attack(
        "projection/sibling",
        "another fingerprinted copy of the same base: one forward pass of it for each prompt",
        lambda scene: _project(scene, "projection/sibling", scene.siblings[:1]),
        ("sibling",),
    ),
)
