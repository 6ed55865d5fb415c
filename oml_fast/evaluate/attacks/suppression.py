"""Hosts that never give the token id that the model wants most, or give it only where the model is not sure [ADV].

[ADV] suppresses in the first n steps of an answer. Here n is 1: a response's first token id decides a match, our
responses mostly have no other, and every further step would cost the host's users more.
Top-k: the k most probable token ids, at every prompt or (gated) only where the greatest probability exceeds the gate.
Neighbour: a likely token id and its spelling neighbours, so that the same word in other clothes is gone too. "Likely"
is read as gated at 0.9, like the source's other gates. Which spellings are neighbours is our reading (`Spellings`).
Look-ahead: see lookahead.py.
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...errors import InvalidArgumentError
from ..attack import Attack, Attacked, Scene
from ..hosts import Host, Strategy
from . import lookahead
from .lookahead import GATE, STEPS, sure

GATES = (0.9, 0.7, 0.5, 0.3)
_MOST_APART = 3  # letters between neighbours: plurals, -ed, -ing, un-, and pieces of a word
_LEAST_LETTERS = 3  # of the shorter of two neighbours that are spelled differently


def suppressing(top: int = 1, gate: float = 0.0, steps: int = STEPS) -> Strategy:
    """In the first `steps` steps the `top` most probable ids (ties by id) are out where the first exceeds `gate`.

    Greedy otherwise, and afterwards. A gate of 0 is none. Raises InvalidArgumentError.
    """
    if top < 1:
        raise InvalidArgumentError(f"top {top}: suppress at least the most probable token id.")
    _require_gate(gate, steps)

    def choose(logits: Tensor, chosen: Tensor) -> Tensor:
        if chosen.shape[1] >= steps:
            return logits.argmax(-1)
        if top >= logits.shape[1]:
            raise InvalidArgumentError(f"top {top} of {logits.shape[1]} token ids: none would be left; suppress fewer.")
        gated, left = sure(logits, gate)[:, None], logits.clone()
        for _ in range(top):
            best = left.argmax(-1, keepdim=True)
            left.scatter_(1, best, left.gather(1, best).masked_fill(gated, -torch.inf))
        return left.argmax(-1)

    return lambda prompts: choose


def suppressing_neighbours(spellings: Spellings, gate: float = GATE, steps: int = STEPS) -> Strategy:
    """As `suppressing`, but for the most probable id and its neighbours."""
    _require_gate(gate, steps)

    def choose(logits: Tensor, chosen: Tensor) -> Tensor:
        best = logits.argmax(-1)
        if chosen.shape[1] >= steps:
            return best
        left = logits.clone()
        for row in sure(logits, gate).nonzero().flatten().tolist():
            left[row, spellings.neighbours(int(best[row]))] = -torch.inf
        return left.argmax(-1)

    return lambda prompts: choose


class Spellings:
    """Token ids whose texts are spelled alike, over a tokenizer's vocabulary of at most `size` ids.

    Two are neighbours if they have the same letters and digits in whatever case, without what surrounds these (blanks,
    word marks, punctuation); or if one, of at least three letters, begins or ends the other, which has at most three
    more. Special tokens, and texts without letters, have no neighbours.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        texts = tokenizer.batch_decode([[i] for i in range(min(len(tokenizer), size))])
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        self._spellings = ["" if i in special else _spelling(text) for i, text in enumerate(texts)]
        self._ids: dict[str, list[int]] = defaultdict(list)
        self._longer: dict[str, set[str]] = defaultdict(set)
        for token_id, spelling in enumerate(self._spellings):
            if spelling:
                self._ids[spelling].append(token_id)
        for spelling in self._ids:
            for shorter in _shorter(spelling):
                self._longer[shorter].add(spelling)

    def neighbours(self, token_id: int) -> list[int]:
        """The ids that are spelled like `token_id`, itself among them, rising."""
        spelling = self._spellings[token_id] if token_id < len(self._spellings) else ""
        if not spelling:
            return [token_id]
        alike = {spelling, *_shorter(spelling), *self._longer.get(spelling, ())}
        return sorted(i for other in alike for i in self._ids.get(other, ()))


def _spelling(text: str) -> str:
    return re.sub(r"^[\W_]+|[\W_]+$", "", text).casefold()


def _shorter(spelling: str) -> set[str]:
    """What is left of a spelling without its first or last one to three letters."""
    cuts = range(1, min(_MOST_APART, len(spelling) - _LEAST_LETTERS) + 1)
    return {part for cut in cuts for part in (spelling[:-cut], spelling[cut:])}


def _require_gate(gate: float, steps: int) -> None:
    if not 0 <= gate < 1:
        raise InvalidArgumentError(f"gate {gate}: it is a probability that can be exceeded, at least 0 and below 1.")
    if steps < 1:
        raise InvalidArgumentError(f"steps {steps}: suppress in at least the first.")


def _run(scene: Scene, name: str, top: int, gate: float) -> Attacked:
    return Attacked(
        Host(scene.model, f"host ({name})", strategy=suppressing(top, gate)),
        details={"top": top, "gate": gate or None, "steps": STEPS},
    )


def _run_neighbour(scene: Scene) -> Attacked:
    spellings = Spellings(scene.model.tokenizer, scene.model.vocabulary)
    return Attacked(
        Host(scene.model, "host (suppress/neighbour)", strategy=suppressing_neighbours(spellings)),
        details={"gate": GATE, "steps": STEPS},
    )


_COST = "decoding access only: no data, no other model, no more than the forward pass that answers"

ATTACKS: tuple[Attack, ...] = (
    *(
        Attack(name, f"{_COST}. It distorts every answer's first word", partial(_run, name=name, top=top, gate=0.0))
        for top in (1, 3)
        for name in [f"suppress/top-{top}"]
    ),
    *(
        Attack(name, _COST, partial(_run, name=name, top=1, gate=gate), strength=gate)
        for gate in GATES
        for name in [f"suppress/gated-{gate:g}"]
    ),
    Attack("suppress/neighbour", f"{_COST}; the vocabulary's texts, read once", _run_neighbour, strength=GATE),
    *lookahead.ATTACKS,
)
