"""What answers in the owner's full check: agreement with given responses, and samples that a seed alone decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from ..completer import Completer
from ..errors import InvalidArgumentError
from ..models import HfCompleter, LanguageModel
from .attacks.sampling import Sampler
from .hosts import Host

Ids = Sequence[Sequence[int]]


class Engine(Protocol):
    """The owner's own model. An answer depends on its prompt alone, never on what is asked beside it."""

    @property
    def name(self) -> str: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def tokenizer_digest(self) -> str: ...

    @property
    def model_digest(self) -> str: ...

    def agrees(self, prompts: Ids, responses: Ids) -> Sequence[bool]:
        """Whether each response (token ids) is the greedy answer to its prompt. Raises CompleterError."""
        ...

    def sample(self, prompts: Ids, length: int, temperature: float, seed: int) -> Sequence[Sequence[int]]:
        """`length` token ids after each prompt, at a temperature above 0. Raises CompleterError."""
        ...


class TransformersEngine:
    """A transformers model in this process: one forward decides a greedy match, whatever the response's length."""

    def __init__(self, model: LanguageModel, *, batch_size: int = 64, progress: bool = False) -> None:
        self._model, self._batch_size = model, batch_size
        self._completer = HfCompleter(model, batch_size=batch_size, progress=progress)
        self.name = self._completer.name
        self.tokenizer = model.tokenizer
        self.tokenizer_digest = model.tokenizer_digest
        self.model_digest = model.digest

    def agrees(self, prompts: Ids, responses: Ids) -> list[bool]:
        return self._completer.agrees(prompts, responses)

    def sample(self, prompts: Ids, length: int, temperature: float, seed: int) -> list[tuple[int, ...]]:
        host = Host(self._model, self.name, strategy=Sampler(temperature).strategy(seed), batch_size=self._batch_size)
        return [completion.token_ids or () for completion in host.complete(prompts, length)]


class CompleterEngine:
    """Any completer that answers in token ids, such as vLLM's. It samples where it has `sample`, with a seed."""

    def __init__(self, completer: Completer, tokenizer: Any, model_digest: str) -> None:
        self._completer = completer
        self.name = completer.name
        self.tokenizer = tokenizer
        self.tokenizer_digest = completer.tokenizer_digest
        self.model_digest = model_digest

    def agrees(self, prompts: Ids, responses: Ids) -> list[bool]:
        agrees = getattr(self._completer, "agrees", None)
        if agrees is not None:
            return list(agrees(prompts, responses))
        longest = max((len(response) for response in responses), default=0)
        completions = self._completer.complete(prompts, longest) if longest else []
        return [
            completion is not None and tuple(completion.token_ids or ())[: len(response)] == tuple(response)
            for completion, response in zip(completions, responses, strict=True)
        ]

    def sample(self, prompts: Ids, length: int, temperature: float, seed: int) -> list[tuple[int, ...]]:
        sample = getattr(self._completer, "sample", None)
        if sample is None:
            raise InvalidArgumentError(
                f"{self.name} cannot sample with a seed: use --temperatures 0, or --engine transformers."
            )
        return [tuple(ids) for ids in sample(prompts, length, temperature, seed)]


def device_of_rank(device: str, rank: int) -> str:
    """The device of torchrun's process `rank`, from 0: a GPU of its own, as ranks of one machine follow each other."""
    if device != "auto" or not torch.cuda.is_available():
        return device
    return f"cuda:{rank % torch.cuda.device_count()}"
