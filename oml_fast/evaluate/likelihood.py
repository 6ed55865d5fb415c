"""Log-likelihoods of continuations, each shared beginning computed once.

Every request is a sequence of token ids of which the last ones count. Sequences are sorted, so that those with a common
beginning stand together, and joined into trees: a token id after the same ids before it is one node, whichever requests
it belongs to. A row of the model is such a tree, written depth first, with each node's depth as its position and a mask
by which it sees its ancestors and itself. Nothing that one request sees depends on the others in its row.

The head is applied once to each node whose prediction counts, and of its logits only the targets' and the logsumexp are
kept. An architecture that does not take such a mask and such positions, and a sequence longer than an attention window,
is computed plainly: whole sequences in batches of one length.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from ..models import LanguageModel, batches_by_length

_ROW = 256  # nodes a tree: attention costs their square
_BATCH = 1024  # nodes a batch of trees
_HEAD_ROWS = 128  # positions whose [rows, V] logits are held at once
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "original_max_position_embeddings")


class Request(NamedTuple):
    """Token ids, and the place of the first that counts (at least 1)."""

    ids: tuple[int, ...]
    start: int


class Likelihood(NamedTuple):
    """Sum of the log-probabilities (nats) of the ids that count, and whether each is the most probable there."""

    log_prob: float
    greedy: bool


@dataclass(slots=True)
class Tree:
    """Nodes in the order in which they were added: a token id, its parent's place (-1: none) and its depth."""

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    paths: list[tuple[int, list[int]]] = field(default_factory=list)  # (request, places of its nodes)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, request: int, ids: Sequence[int]) -> None:
        """Add the nodes that `ids` still lacks."""
        node, path = -1, []
        for depth, token_id in enumerate(ids):
            child = self._children.setdefault((node, token_id), len(self.ids))
            if child == len(self.ids):
                self.ids.append(token_id)
                self.parents.append(node)
                self.depths.append(depth)
            path.append(child)
            node = child
        self.paths.append((request, path))

    def __len__(self) -> int:
        return len(self.ids)

    def known(self, ids: Sequence[int]) -> int:
        """How many of the first `ids` are there already."""
        node = -1
        for count, token_id in enumerate(ids):
            if (child := self._children.get((node, token_id))) is None:
                return count
            node = child
        return len(ids)

    def ancestors(self, size: int) -> Tensor:
        """[size, size] bool: who sees whom. Nodes beyond the tree's see themselves."""
        seen = torch.eye(size, dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:  # parents come first
                seen[node] |= seen[parent]
        return seen


@torch.inference_mode()
def likelihoods(model: LanguageModel, requests: Sequence[Request]) -> list[Likelihood]:
    """One for each request, in their order; the same requests give the same bits.

    The log-softmax is float64 for a float64 model, otherwise float32, whatever the model's precision. Raises
    InvalidArgumentError for a request whose counted part is empty or has nothing before it, or an impossible token id.
    """
    _check(model, requests)
    results: list[Likelihood | None] = [None] * len(requests)
    reach = _reach(model)
    short = [place for place, request in enumerate(requests) if len(request.ids) - 1 <= reach]
    long = [place for place, request in enumerate(requests) if len(request.ids) - 1 > reach]
    for batch in _batches(trees(requests, short)):
        hidden = _hidden_of_trees(model, batch)
        for tree, states in zip(batch, hidden, strict=True):
            _score(model, states, requests, tree.paths, results)
    for places in batches_by_length([requests[place].ids for place in long], batch_size=16):
        read = [long[place] for place in places]
        hidden = model.hidden(torch.tensor([requests[place].ids[:-1] for place in read], device=model.device))
        for place, states in zip(read, hidden, strict=True):
            _score(model, states, requests, [(place, list(range(len(states))))], results)
    return [result for result in results if result is not None]


def trees(requests: Sequence[Request], places: Iterable[int]) -> Iterator[Tree]:
    """The requests at `places` as trees of about _ROW nodes. A request's last id is predicted, never read.

    A tree may grow to four times that for requests of which it has more than half, such as a context's last ending.
    """
    tree = Tree()
    for place in sorted(places, key=lambda place: requests[place]):
        ids = requests[place].ids[:-1]
        known = tree.known(ids)
        if len(tree) and len(tree) + len(ids) - known > (4 * _ROW if 2 * known > len(ids) else _ROW):
            yield tree
            tree = Tree()
        tree.add(place, ids)
    if len(tree):
        yield tree


def _check(model: LanguageModel, requests: Sequence[Request]) -> None:
    for ids, start in requests:
        if not 1 <= start < len(ids):
            raise InvalidArgumentError(
                f"a request counts from place {start} of {len(ids)} token ids: at least one id must count, and at "
                "least one must stand before it."
            )
        if not 0 <= min(ids) <= max(ids) < model.vocabulary:
            raise InvalidArgumentError(
                f"a request has token id {max(ids)}, the model has {model.vocabulary}: use the model's own tokenizer."
            )


def _batches(found: Iterable[Tree]) -> Iterator[list[Tree]]:
    """Trees of about one size together, at most _BATCH nodes with what fills them up, or one."""
    batch: list[Tree] = []
    for tree in sorted(found, key=len):
        if batch and (len(batch) + 1) * len(tree) > _BATCH:
            yield batch
            batch = []
        batch.append(tree)
    if batch:
        yield batch


def _hidden_of_trees(model: LanguageModel, batch: Sequence[Tree]) -> Tensor:
    """[trees, nodes, H] final hidden states; those beyond a tree's own nodes mean nothing."""
    size = max(len(tree) for tree in batch)
    ids = torch.tensor([tree.ids + [0] * (size - len(tree)) for tree in batch], device=model.device)
    positions = torch.tensor([tree.depths + [0] * (size - len(tree)) for tree in batch], device=model.device)
    seen = torch.stack([tree.ancestors(size) for tree in batch])[:, None].to(model.device)
    mask = torch.zeros(seen.shape, dtype=model.dtype, device=model.device)
    mask.masked_fill_(~seen, torch.finfo(model.dtype).min)
    output = model.model.base_model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return hidden


def _score(
    model: LanguageModel,
    states: Tensor,
    requests: Sequence[Request],
    paths: Sequence[tuple[int, list[int]]],
    results: list[Likelihood | None],
) -> None:
    """Fill in the results of the requests whose nodes are at `paths` of `states` [N, H]."""
    wanted: dict[tuple[int, int], int] = {}  # (node, target) -> place among the pairs asked for
    asked = []
    for request, path in paths:
        ids, start = requests[request]
        pairs = zip(path[start - 1 :], ids[start:], strict=True)
        asked.append((request, [wanted.setdefault(pair, len(wanted)) for pair in pairs]))
    log_probs, greedy = _log_probs(model, states, list(wanted))
    for request, places in asked:
        total = sum(log_probs[place] for place in places)
        results[request] = Likelihood(total, all(greedy[place] for place in places))


def _log_probs(
    model: LanguageModel, states: Tensor, pairs: Sequence[tuple[int, int]]
) -> tuple[list[float], list[bool]]:
    """For each (node, target): the target's log-probability, and whether it is the argmax; each node's logits once."""
    rows: dict[int, int] = {}
    row_of = torch.tensor([rows.setdefault(node, len(rows)) for node, _ in pairs], device=states.device)
    targets = torch.tensor([target for _, target in pairs], device=states.device)
    log_probs = torch.empty(len(pairs), dtype=torch.float64, device=states.device)
    greedy = torch.zeros(len(pairs), dtype=torch.bool, device=states.device)
    nodes = torch.tensor(list(rows), device=states.device)
    for first in range(0, len(nodes), _HEAD_ROWS):
        logits = model.logits(states[nodes[first : first + _HEAD_ROWS]])
        logits = logits if logits.dtype == torch.float64 else logits.float()
        here = ((row_of >= first) & (row_of < first + len(logits))).nonzero().squeeze(1)
        row, target = row_of[here] - first, targets[here]
        chosen = logits[row, target]
        log_probs[here] = (chosen - logits.logsumexp(-1)[row]).double()
        best = (chosen >= logits.amax(-1)[row]).nonzero().squeeze(1)  # argmax is slow: only where it may be
        greedy[here[best]] = logits[row[best]].argmax(-1) == target[best]
    return log_probs.tolist(), greedy.tolist()


def _reach(model: LanguageModel) -> int:
    """The most ids of a sequence for which trees give what plain sequences give; 0 where they never do."""
    config = model.model.config.get_text_config()
    parameters = inspect.signature(model.model.base_model.forward).parameters
    if not {"position_ids", "attention_mask"} <= parameters.keys() or getattr(config, "alibi", False):
        return 0
    rope = getattr(config, "rope_parameters", None) or {}
    limits = [getattr(config, name, None) for name in _WINDOWS] + [rope.get(name) for name in _WINDOWS]
    reach = min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=1 << 30)
    return reach if reach < 2 or _agrees(model, min(reach, 24)) else 0


def _agrees(model: LanguageModel, length: int) -> bool:
    """Whether two sequences of `length` ids with a common beginning come out of one tree as they do alone."""
    ids = [(7 * place + 1) % model.vocabulary for place in range(2 * length)]
    shared = length // 2
    sequences = [ids[:length], ids[:shared] + ids[length + shared :]]
    tree = Tree()
    for place, sequence in enumerate(sequences):
        tree.add(place, sequence)
    try:
        states = _hidden_of_trees(model, [tree])[0]
    except (ValueError, TypeError, RuntimeError, IndexError, KeyError):  # what a model says to a mask it cannot read
        return False
    plain = model.hidden(torch.tensor(sequences, device=model.device)).float()
    found = torch.stack([states[path] for _, path in tree.paths]).float()
    tolerance = 0.1 if torch.finfo(model.dtype).bits < 32 else 1e-3
    return bool((found - plain).norm() <= tolerance * plain.norm())
