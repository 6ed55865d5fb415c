"""From prompts to responses: logits, perinucleus, the window of accepted candidates, the draw, the tail.

This is the middle of the main line. Per batch of prompts of one length: one forward pass, one call of the op, one pass
of the tokenizer over all candidates, the draw, and for longer responses a continuation from the same cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from ..fingerprint import Asking, Response, Settings, Window
from ..models import LanguageModel, batches_by_length, greedy, packed_weights, prefill
from ..ops import perinucleus
from .acceptance import Prompt, accepted
from .vocabulary import Vocabulary

_PASSES_WORTH_PACKING = 12  # of a batch through the model: packing takes the time that ten such save
Draw = Callable[[tuple[int, ...]], tuple[int, ...]]  # key ids -> indices into the window, one per response


@dataclass(frozen=True, slots=True)
class _Found:
    """A prompt's window, and the nucleus that it lies outside of."""

    window: Window
    nucleus_size: int
    nucleus_mass: float


class Responder:
    """Makes askings for prompts. `sampling_seconds` adds up what the op and the checks took, of all the time."""

    def __init__(
        self, model: LanguageModel, vocabulary: Vocabulary, settings: Settings, batch_size: int, backend: str = "auto"
    ) -> None:
        self._model, self._vocabulary, self._settings = model, vocabulary, settings
        self._batch_size, self._backend = batch_size, backend
        self.sampling_seconds = 0.0

    def respond(self, prompts: Sequence[Prompt], draw: Draw) -> list[Asking | None]:
        """An asking for each prompt of one format, None where fewer than k candidates are accepted."""
        passes = len(prompts) * self._settings.response_length // self._batch_size
        with packed_weights(self._model.model) if passes >= _PASSES_WORTH_PACKING else nullcontext():
            return self._respond(prompts, draw)

    def _respond(self, prompts: Sequence[Prompt], draw: Draw) -> list[Asking | None]:
        askings: list[Asking | None] = [None] * len(prompts)
        for places in batches_by_length([prompt.ids for prompt in prompts], self._batch_size):
            batch = [prompts[place] for place in places]
            logits, cache = prefill(self._model, [p.ids for p in batch], cache=self._settings.response_length > 1)
            started = time.perf_counter()
            found = self._search(logits, batch)
            self.sampling_seconds += time.perf_counter() - started
            draws = {row: draw(batch[row].key_ids) for row in found}
            for row, tails in zip(found, self._tails(cache, found, draws), strict=True):
                askings[places[row]] = self._asking(batch[row], found[row], draws[row], tails)
        return askings

    def _search(self, logits: Tensor, batch: Sequence[Prompt]) -> dict[int, _Found]:
        """Row -> its first k accepted candidates. Asks the op for more only where too few of the first are accepted."""
        k = self._settings.width
        wanted, most = k + k // 2 + 2, logits.shape[1]  # of 16 candidates hardly ever more than 4 are refused
        windows: dict[int, _Found] = {}
        rows = list(range(len(batch)))
        while rows:
            wanted = min(wanted, most)
            asked = logits if len(rows) == len(batch) else logits[rows]
            result = perinucleus(
                asked, self._settings.threshold, wanted, self._vocabulary.admissible, backend=self._backend
            )
            probs = result.probs.tolist()
            candidates = [[c for c in row if c >= 0] for row in result.token_ids.tolist()]
            texts = self._first_accepted([batch[row] for row in rows], candidates)
            again = []
            for i, row in enumerate(rows):
                first = [(c, texts[i][c], p) for c, p in zip(candidates[i], probs[i], strict=False) if c in texts[i]]
                if len(first) >= k:
                    window = Window(*zip(*first[:k], strict=True))
                    windows[row] = _Found(window, int(result.nucleus_size[i]), float(result.nucleus_mass[i]))
                elif len(candidates[i]) == wanted < most:
                    again.append(row)
            rows, wanted = again, 4 * wanted
        return dict(sorted(windows.items()))

    def _first_accepted(self, batch: Sequence[Prompt], candidates: Sequence[Sequence[int]]) -> list[dict[int, str]]:
        """The texts of each prompt's first k accepted candidates, or of all. Checks no candidate that is not needed."""
        found: list[dict[int, str]] = [{} for _ in batch]
        checked = [0] * len(batch)
        while True:
            upto = [n + self._settings.width - len(texts) for n, texts in zip(checked, found, strict=True)]
            parts = [ids[n:end] for ids, n, end in zip(candidates, checked, upto, strict=True)]
            rows = [row for row, part in enumerate(parts) if part]
            if not rows:
                return found
            texts = accepted(self._model.tokenizer, [batch[row] for row in rows], [parts[row] for row in rows])
            for row, of_row in zip(rows, texts, strict=True):
                found[row] |= of_row
            checked = upto

    def _tails(
        self, cache: DynamicCache | None, found: dict[int, _Found], draws: dict[int, tuple[int, ...]]
    ) -> list[list[tuple[list[int], list[float]]]]:
        """For each row found and each draw: the ids and probabilities after the first, greedy from the base model."""
        length, per_key = self._settings.response_length - 1, self._settings.responses_per_key
        if cache is None or not found:
            return [[([], [])] * per_key for _ in found]
        first = [found[row].window.token_ids[index] for row, indices in draws.items() for index in indices]
        rows = torch.tensor(list(found), device=self._model.device).repeat_interleave(per_key)
        cache.batch_select_indices(rows)
        with torch.inference_mode():
            hidden = self._model.hidden(torch.tensor(first, device=self._model.device)[:, None], cache)
            logits = self._model.logits(hidden[:, -1])
        ids, probs = greedy(self._model, logits, cache, length, self._vocabulary.plain)
        flat = list(zip(ids.tolist(), probs.tolist(), strict=True))
        return [flat[i : i + per_key] for i in range(0, len(flat), per_key)]

    def _asking(
        self, prompt: Prompt, found: _Found, indices: tuple[int, ...], tails: list[tuple[list[int], list[float]]]
    ) -> Asking:
        tokenizer, window = self._model.tokenizer, found.window
        key = tokenizer.decode(list(prompt.key_ids))
        responses = []
        for slot, (index, (tail, probs)) in enumerate(zip(indices, tails, strict=True)):
            ids = (window.token_ids[index], *tail)
            text = str(tokenizer.decode([*prompt.key_ids, *ids]))[len(key) :]
            responses.append(Response(slot, index, text, ids, (window.probs[index], *probs)))
        return Asking(prompt.ids, window, found.nucleus_size, found.nucleus_mass, tuple(responses))
