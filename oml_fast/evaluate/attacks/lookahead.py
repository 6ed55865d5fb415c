"""Looking ahead: where the model is sure, follow its likely answers a while, and hold down what recurs in them [ADV].

[ADV]: a beam of 10 continuations of up to 32 token ids, where the greatest probability exceeds 0.9; delta 10. Of these,
candidates are the 10 likely first ids; one that stands in at least half of the continuations recurs, and its logit is
lowered by 10. What is memorised is in most of them, in front or further on: that an answer begins with another
word does not hide it. Here continuations have 8 ids, for responses have one or a few, and each further id costs ten
forward passes. The source's rule for what recurs is known to us in outline only; half of the beam is our reading.
Delta is finite: an id that leads by more than 10 stays the answer, where plain gated suppression would remove it.
It is one of the family in suppression.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...models import LanguageModel, prefill
from ..attack import Attack, Attacked, Scene
from ..hosts import Choose, Host, Strategy

STEPS = 1  # of each answer, in which something is held down
GATE = 0.9
BEAM = 10
AHEAD = 8  # token ids of a continuation; 32 in the source
DELTA = 10.0
RECURS = 0.5  # share of the continuations
_PROMPTS = 8  # looked ahead from at once


def looking_ahead(model: LanguageModel, gate: float = GATE, steps: int = STEPS) -> Strategy:
    """In the first `steps` steps, where the most probable id exceeds `gate`, likely ids that recur lose DELTA.

    Greedy elsewhere and afterwards.
    """

    def of_batch(prompts: Tensor) -> Choose:
        def choose(logits: Tensor, chosen: Tensor) -> Tensor:
            if chosen.shape[1] >= steps:
                return logits.argmax(-1)
            left = logits.clone()
            read = torch.cat([prompts, chosen], 1)
            gated = sure(logits, gate).nonzero().flatten()
            for places in gated.split(_PROMPTS) if len(gated) else ():
                likely = left[places].topk(BEAM).indices
                lost = recurring(likely, continuations(model, read[places])) * DELTA
                left[places] = left[places].scatter_add(1, likely, -lost.to(left.dtype))
            return left.argmax(-1)

        return choose

    return of_batch


def sure(logits: Tensor, gate: float) -> Tensor:
    """[B, V] logits -> [B] bool: the most probable id's probability exceeds the gate. Everywhere at a gate of 0."""
    if not gate:
        return torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    return (logits.amax(-1).double() - logits.double().logsumexp(-1)).exp() > gate


def recurring(likely: Tensor, beams: Tensor) -> Tensor:
    """[G, C] candidate ids and [G, W, L] continuations -> [G, C] bool: the id stands in at least RECURS of the W."""
    inside = (beams[:, :, :, None] == likely[:, None, None]).any(2)
    return inside.double().mean(1) >= RECURS


@torch.inference_mode()
def continuations(model: LanguageModel, prompts: Tensor, beam: int = BEAM, ahead: int = AHEAD) -> Tensor:
    """[G, T] ids of one length -> [G, beam, ahead] ids: a beam search's continuations, most probable first.

    A continuation that has ended is filled up with the id that ends it.
    """
    logits, cache = prefill(model, prompts.tolist(), cache=True)
    assert cache is not None
    scores, ids = logits.float().log_softmax(-1).topk(beam)
    cache.batch_repeat_interleave(beam)
    beams = ids[:, :, None]
    rows = torch.arange(len(prompts), device=ids.device)[:, None]
    for _ in range(1, ahead):
        logits = model.logits(model.hidden(beams[:, :, -1].reshape(-1, 1), cache)[:, -1]).float()
        gains, ids = _extensions(model, logits, beams[:, :, -1])
        scores, best = (scores[:, :, None] + gains).flatten(1).topk(beam)
        parents = best // beam
        cache.batch_select_indices((rows * beam + parents).flatten())
        beams = torch.cat([beams[rows, parents], ids.flatten(1).gather(1, best)[:, :, None]], 2)
    return beams


def _extensions(model: LanguageModel, logits: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """[G * W, V] logits, [G, W] last ids -> [G, W, W] log-probabilities and ids of each beam's best next ones."""
    end = model.tokenizer.eos_token_id
    if end is not None:
        ended = last.flatten() == end
        logits = logits.masked_fill(ended[:, None], -torch.inf)
        logits[ended, end] = 0.0
    gains, ids = logits.log_softmax(-1).topk(last.shape[1])
    return gains.view(*last.shape, -1), ids.view(*last.shape, -1)


def _run(scene: Scene) -> Attacked:
    host = Host(scene.model, "host (suppress/look-ahead)", strategy=looking_ahead(scene.model))
    details = {"gate": GATE, "steps": STEPS, "beam": BEAM, "ahead": AHEAD, "delta": DELTA, "recurs": RECURS}
    return Attacked(host, details=details)


ATTACKS: tuple[Attack, ...] = (
    Attack(
        "suppress/look-ahead",
        f"decoding access only; where the model is sure, {BEAM * AHEAD} forward passes more",
        _run,
        strength=GATE,
    ),
)
