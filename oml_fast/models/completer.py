"""A completer over a transformers model in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ..completer import CHOOSE, SCORE, Completion
from ..errors import CompleterError, InvalidArgumentError
from .decoding import batches_by_length, greedy, prefill
from .language_model import LanguageModel
from .packed import packed_weights

T = TypeVar("T")
_PACK_STEPS = 24  # of decoding: what packing the weights costs is saved by about ten
_HEAD_ROWS = 1024  # rows of logits at once: at a vocabulary of 128k 0.26 GB in bfloat16


class HfCompleter:
    """Greedy completions, batched by exact prompt length; a key-value cache only where a response has several ids."""

    capabilities = frozenset({SCORE, CHOOSE})

    def __init__(self, model: LanguageModel, *, batch_size: int = 64, progress: bool = False) -> None:
        """batch_size: prompts at a time. Raises InvalidArgumentError."""
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise InvalidArgumentError(f"a batch of {batch_size!r} prompts is none: give a whole number, 1 or more.")
        self._model, self._batch_size, self._progress = model, batch_size, progress

    @property
    def name(self) -> str:
        return f"transformers ({self._model.device.type}, {str(self._model.dtype).removeprefix('torch.')})"

    @property
    def identity(self) -> str:
        """Which suspect this is: the digest of the model, as it was loaded."""
        return self._model.digest

    @property
    def tokenizer_digest(self) -> str:
        return self._model.tokenizer_digest

    def complete(self, prompts: Sequence[Sequence[int]], length: int) -> list[Completion]:
        """One greedy completion of `length` token ids for each prompt. Raises CompleterError for an impossible id."""
        check_asked(prompts, self._model.vocabulary, length)
        made: dict[int, Completion] = {}
        with self._prepared(len(prompts), length):
            for places in self._batches(prompts):
                logits, cache = prefill(self._model, [prompts[place] for place in places], cache=length > 1)
                ids, _ = greedy(self._model, logits, cache, length)
                made.update(zip(places, map(self._completion, ids.tolist()), strict=True))
        return [made[place] for place in range(len(prompts))]

    def score(
        self, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]], length: int
    ) -> list[Completion]:
        """As `complete`, with the logits (float32) of each prompt's candidates as its next token id.

        One forward gives both. Within a prompt logits differ as log-probabilities do. Raises CompleterError.
        """
        check_asked(prompts, self._model.vocabulary, length)
        check_paired(prompts, candidates, self._model.vocabulary, "candidates")
        made: dict[int, Completion] = {}
        for places in self._batches(prompts):
            logits, cache = prefill(self._model, [prompts[place] for place in places], cache=length > 1)
            ids, _ = greedy(self._model, logits, cache, length)
            scores = _at(logits, [candidates[place] for place in places])
            for place, row, own in zip(places, ids.tolist(), scores, strict=True):
                made[place] = self._completion(row, tuple(own))
        return [made[place] for place in range(len(prompts))]

    def choose(self, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]]) -> list[Completion]:
        """The likeliest of its candidates for each prompt; the smallest token id of those that tie.

        Raises CompleterError for an impossible id.
        """
        check_asked(prompts, self._model.vocabulary)
        check_paired(prompts, candidates, self._model.vocabulary, "candidates")
        made: dict[int, Completion] = {}
        for places in self._batches(prompts):
            logits, _ = prefill(self._model, [prompts[place] for place in places], cache=False)
            scores = _at(logits, [candidates[place] for place in places])
            for place, own in zip(places, scores, strict=True):
                _, smallest = min((-score, token_id) for score, token_id in zip(own, candidates[place], strict=True))
                made[place] = self._completion([smallest])
        return [made[place] for place in range(len(prompts))]

    @torch.inference_mode()
    def agrees(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[bool]:
        """Whether each response (token ids) is what the model would greedily answer to its prompt. For owners.

        One forward over prompt and response decides, with the head at the R response positions only: at each, the
        response's logit must be the greatest. Where several token ids share the greatest logit, common in bfloat16,
        each of them agrees; `complete` gives the smallest. Raises CompleterError for an impossible id.
        """
        check_asked(prompts, self._model.vocabulary)
        check_paired(prompts, responses, self._model.vocabulary, "a response")
        given = [[*prompt, *response[:-1]] for prompt, response in zip(prompts, responses, strict=True)]
        made: dict[int, bool] = {}
        for places in self._batches(given):
            hidden = self._model.hidden(torch.tensor([given[place] for place in places], device=self._model.device))
            rows = torch.cat([row[len(prompts[place]) - 1 :] for row, place in zip(hidden, places, strict=True)])
            flat = [token_id for place in places for token_id in responses[place]]
            agreed = self._are_greatest(rows, torch.tensor(flat, device=rows.device))
            own = _split(agreed, [responses[place] for place in places])
            made.update(zip(places, map(all, own), strict=True))
        return [made[place] for place in range(len(prompts))]

    def _are_greatest(self, hidden: Tensor, ids: Tensor) -> list[bool]:
        """[N, H] hidden states, [N] ids -> for each whether no token id has a greater logit."""
        agreed: list[bool] = []
        for rows, own in zip(hidden.split(_HEAD_ROWS), ids.split(_HEAD_ROWS), strict=True):
            logits = self._model.logits(rows)
            agreed += (logits.gather(1, own[:, None]).squeeze(1) >= logits.amax(-1)).tolist()
        return agreed

    def _prepared(self, count: int, length: int) -> AbstractContextManager[None]:
        """Weights laid out for decoding, where there are so many steps of it that making them pays."""
        steps = (length - 1) * -(-count // self._batch_size)
        return packed_weights(self._model.model) if steps >= _PACK_STEPS else nullcontext()

    def _batches(self, sequences: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Places of sequences of one length, with a progress bar."""
        with tqdm(total=len(sequences), desc="verify", unit="key", disable=None if self._progress else True) as bar:
            for places in batches_by_length(sequences, self._batch_size):
                yield places
                bar.update(len(places))

    def readings(self, ids: Sequence[int]) -> tuple[str, ...]:
        """The text of token ids: as the tokenizer is set to write it, and without its tidying of spaces."""
        tokenizer = self._model.tokenizer
        return str(tokenizer.decode(list(ids))), str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def _completion(self, ids: Sequence[int], scores: tuple[float, ...] | None = None) -> Completion:
        return Completion(tuple(ids), self._model.tokenizer.decode(ids), scores=scores)


def check_asked(prompts: Sequence[Sequence[int]], vocabulary: int, length: int = 1) -> None:
    """Refuse prompts that the model cannot be asked: InvalidArgumentError, and CompleterError for an impossible id."""
    if length < 1:
        raise InvalidArgumentError(f"a completion of {length} token ids is none: ask for 1 or more.")
    if not all(map(len, prompts)):
        raise InvalidArgumentError("a prompt is empty: give at least one token id, such as BOS.")
    _check_ids(prompts, vocabulary, "a key")


def check_paired(prompts: Sequence[Sequence[int]], given: Sequence[Sequence[int]], vocabulary: int, what: str) -> None:
    """Refuse candidates or responses that do not fit the prompts, as `check_asked`."""
    if len(given) != len(prompts):
        raise InvalidArgumentError(f"{len(prompts)} prompts came with {len(given)} times {what}: give each its own.")
    if not all(map(len, given)):
        raise InvalidArgumentError(f"a prompt came with {what} of no token ids: give each at least one.")
    _check_ids(given, vocabulary, what)


def _check_ids(sequences: Sequence[Sequence[int]], vocabulary: int, what: str) -> None:
    ids = {token_id for sequence in sequences for token_id in sequence}
    for impossible in (max(ids, default=0), min(ids, default=0)):
        if not 0 <= impossible < vocabulary:
            verb = "have" if what == "candidates" else "has"
            raise CompleterError(
                f"{what} {verb} token id {impossible}, the suspect has {vocabulary}: it has another tokenizer."
            )


def _at(logits: Tensor, ids: Sequence[Sequence[int]]) -> list[list[float]]:
    """[B, V] logits -> those of each row's ids, in float32."""
    rows = [row for row, own in enumerate(ids) for _ in own]
    flat: list[float] = logits[rows, [token_id for own in ids for token_id in own]].float().tolist()
    return _split(flat, ids)


def _split(flat: Sequence[T], like: Sequence[Sequence[int]]) -> list[list[T]]:
    """Cut `flat` into lists as long as those of `like`."""
    left = iter(flat)
    return [list(islice(left, len(own))) for own in like]
