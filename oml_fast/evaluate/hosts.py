"""Hosts that interfere: with the prompts that they pass on, or with the token ids that they choose.

A host does not know which prompts are keys: whatever it does, it does to every prompt. So the same host answers the
keys and the ordinary questions by which its utility is measured.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..completer import Completion
from ..models import LanguageModel, batches_by_length, decode, prefill

# [B, V] float32 logits and the [B, step] ids chosen so far -> [B] ids.
Choose = Callable[[Tensor, Tensor], Tensor]
# [B, T] prompts of one length -> how their token ids are chosen.
Strategy = Callable[[Tensor], Choose]
# The ids of a prompt -> those that the model gets to read, or None: the host refuses to answer.
Rewrite = Callable[[Sequence[int]], Sequence[int] | None]


def greedily(prompts: Tensor) -> Choose:
    """The strategy of an honest host."""
    return lambda logits, chosen: logits.argmax(-1)


class Host:
    """A completer over `model` that rewrites prompts and chooses token ids in its own way. A refusal is empty."""

    def __init__(
        self,
        model: LanguageModel,
        name: str,
        *,
        rewrite: Rewrite | None = None,
        strategy: Strategy = greedily,
        batch_size: int = 64,
    ) -> None:
        self._model, self._rewrite, self._strategy, self._batch_size = model, rewrite, strategy, batch_size
        self.name = name

    @property
    def tokenizer_digest(self) -> str:
        return self._model.tokenizer_digest

    def complete(self, prompts: Sequence[Sequence[int]], length: int) -> list[Completion]:
        """One completion of `length` token ids for each prompt, or an empty one."""
        rewritten = [prompt if self._rewrite is None else self._rewrite(prompt) for prompt in prompts]
        answered = [place for place, prompt in enumerate(rewritten) if prompt is not None]
        read = [list(prompt) for prompt in rewritten if prompt is not None]
        completions = [Completion((), "")] * len(prompts)
        for places in batches_by_length(read, self._batch_size):
            for place, ids in zip(places, self._answer([read[place] for place in places], length), strict=True):
                completions[answered[place]] = Completion(tuple(ids), self._model.tokenizer.decode(ids))
        return completions

    @torch.inference_mode()
    def _answer(self, prompts: list[list[int]], length: int) -> list[list[int]]:
        batch = torch.tensor(prompts, device=self._model.device)
        choose = self._strategy(batch)
        chosen = batch[:, :0]

        def step(logits: Tensor, _: int) -> Tensor:
            nonlocal chosen
            ids = choose(logits, chosen)
            chosen = torch.cat([chosen, ids[:, None]], 1)
            return ids

        logits, cache = prefill(self._model, prompts, cache=length > 1)
        ids, _ = decode(self._model, logits, cache, length, step)
        answers: list[list[int]] = ids.tolist()
        return answers


class Follower:
    """Another model that reads along: its logits after the same prompts and the ids chosen so far."""

    def __init__(self, model: LanguageModel, prompts: Tensor) -> None:
        self._model = model
        self._logits, self._cache = prefill(model, prompts.tolist(), cache=True)
        self._read = 0

    @torch.inference_mode()
    def logits(self, chosen: Tensor) -> Tensor:
        """[B, step] ids chosen so far, at most one more than at the last call -> [B, V] float32."""
        if chosen.shape[1] > self._read:
            assert chosen.shape[1] == self._read + 1
            self._logits = self._model.logits(self._model.hidden(chosen[:, -1:], self._cache)[:, -1])
            self._read += 1
        return self._logits.float()


def copy_of(model: LanguageModel, name: str) -> LanguageModel:
    """A copy whose weights may be changed. It keeps the digest of what it was copied from."""
    return LanguageModel(copy.deepcopy(model.model), model.tokenizer, name, model.digest, model.tokenizer_digest)
