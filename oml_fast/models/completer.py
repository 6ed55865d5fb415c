"""A completer over a transformers model in this process."""

from __future__ import annotations

from collections.abc import Sequence

from tqdm import tqdm

from ..completer import Completion
from ..errors import CompleterError
from .decoding import batches_by_length, greedy, prefill
from .language_model import LanguageModel


class HfCompleter:
    """Greedy completions, batched by exact prompt length; a key-value cache only where a response has several ids."""

    def __init__(self, model: LanguageModel, *, batch_size: int = 64, progress: bool = False) -> None:
        self._model, self._batch_size, self._progress = model, batch_size, progress

    @property
    def name(self) -> str:
        return f"transformers ({self._model.device.type}, {str(self._model.dtype).removeprefix('torch.')})"

    @property
    def tokenizer_digest(self) -> str:
        return self._model.tokenizer_digest

    def complete(self, prompts: Sequence[Sequence[int]], length: int) -> list[Completion]:
        """One greedy completion of `length` token ids for each prompt. Raises CompleterError for an impossible id."""
        highest = max((token_id for prompt in prompts for token_id in prompt), default=0)
        if highest >= self._model.vocabulary:
            raise CompleterError(
                f"a key has token id {highest}, the suspect has {self._model.vocabulary}: it has another tokenizer."
            )
        completions: list[Completion | None] = [None] * len(prompts)
        with tqdm(total=len(prompts), desc="verify", unit="key", disable=None if self._progress else True) as bar:
            for places in batches_by_length(prompts, self._batch_size):
                logits, cache = prefill(self._model, [prompts[place] for place in places], cache=length > 1)
                ids, _ = greedy(self._model, logits, cache, length)
                for place, row in zip(places, ids.tolist(), strict=True):
                    completions[place] = Completion(tuple(row), self._model.tokenizer.decode(row))
                bar.update(len(places))
        return [completion for completion in completions if completion is not None]
