"""Hosts that put their copies together, each with its own fingerprint set, and answer as one [SF].

Each colluder's proposal is the most probable token id of its copy; where all propose the same, that is the answer.
Majority: the proposal made most often. Of those made equally often, as always by two colluders, the one that the
colluders together rank best (lowest sum of ranks, Borda's rule): a fingerprint that one copy alone carries stands far
down in the others, the ordinary answer near the top in all. Then the greater mean probability, then the lower id.
Minority: the proposal made least often, and of those the one ranked worst. It is no way to hide, but to frame: with
two colluders it brings out each one's fingerprints.
Refusal: the answer ends (EOS) where proposals differ.
Optimal: where proposals differ, the id with the greatest mean log-probability that nobody proposed, so that no
colluder's fingerprint explains it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InvalidArgumentError
from ...models import LanguageModel
from ..attack import Attack, Attacked, Scene
from ..hosts import Host
from .ensemble import Decide, together
from .projection import require_copies


def majority(logits: Tensor, chosen: Tensor) -> Tensor:
    """[M, B, V] logits of M colluders -> [B] ids."""
    return _elected(logits, most=True)


def minority(logits: Tensor, chosen: Tensor) -> Tensor:
    """[M, B, V] logits of M colluders -> [B] ids."""
    return _elected(logits, most=False)


def refusal(end: int) -> Decide:
    """[M, B, V] logits of M colluders -> [B] ids: `end` where proposals differ, and ever after."""

    def decide(logits: Tensor, chosen: Tensor) -> Tensor:
        proposals = logits.argmax(-1)
        return proposals[0].masked_fill(_differ(proposals) | (chosen == end).any(-1), end)

    return decide


def optimal(logits: Tensor, chosen: Tensor) -> Tensor:
    """[M, B, V] logits of M colluders -> [B] ids."""
    proposals = logits.argmax(-1)
    mean = logits.log_softmax(-1).mean(0).scatter(1, proposals.T, -torch.inf)
    return torch.where(_differ(proposals), mean.argmax(-1), proposals[0])


def _differ(proposals: Tensor) -> Tensor:
    """[M, B] ids -> [B] bool."""
    return (proposals != proposals[0]).any(0)


def _elected(logits: Tensor, *, most: bool) -> Tensor:
    """The winner among proposals in the order of votes, ranks, probability (`most`), or in the reverse order."""
    proposals = logits.argmax(-1)
    votes = (proposals[:, None] == proposals[None]).sum(0)
    theirs = [logits.gather(2, proposal.expand(len(logits), -1)[..., None]) for proposal in proposals]
    ranks = [(logits > own).sum(-1).sum(0) for own in theirs]
    scale = logits.logsumexp(-1)
    probs = [(own.squeeze(-1) - scale).exp().mean(0) for own in theirs]
    winners = []
    for row in range(proposals.shape[1]):
        order = sorted(
            (-int(votes[m, row]), int(ranks[m][row]), -float(probs[m][row]), int(proposals[m, row]))
            for m in range(len(proposals))
        )
        winners.append((order[0] if most else order[-1])[-1])
    return torch.tensor(winners, device=logits.device)


def _end(model: LanguageModel) -> int:
    end = model.tokenizer.eos_token_id
    if end is None:
        raise InvalidArgumentError(f"{model.name}: its tokenizer has no end-of-text id to refuse with; set eos_token.")
    return int(end)


def _collude(scene: Scene, name: str, decide: Decide) -> Attacked:
    require_copies(scene.model, scene.siblings, name)
    host = Host(scene.model, f"host ({name})", strategy=together(scene.siblings, decide))
    return Attacked(host, details={"colluders": 1 + len(scene.siblings)})


def _refuse(scene: Scene) -> Attacked:
    return _collude(scene, "collusion/refusal", refusal(_end(scene.model)))


_COST = "hosts with a copy each, of different fingerprint sets: a forward pass of each copy at every step"

ATTACKS: tuple[Attack, ...] = (
    Attack("collusion/majority", _COST, lambda t: _collude(t, "collusion/majority", majority), ("sibling",)),
    Attack("collusion/minority", _COST, lambda t: _collude(t, "collusion/minority", minority), ("sibling",)),
    Attack("collusion/refusal", f"{_COST}; refuses many ordinary questions", _refuse, ("sibling",)),
    Attack("collusion/optimal", _COST, lambda t: _collude(t, "collusion/optimal", optimal), ("sibling",)),
)
