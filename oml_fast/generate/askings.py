"""From prompts to responses: logits, perinucleus, the window of accepted candidates, the draw, the tail.

This is the middle of the main line. Per batch of prompts of one length: one forward pass, one call of the op, one pass
of the tokenizer over all candidates, the draw, and for longer responses a continuation from the same cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..fingerprint import Asking, Response, Settings, Window
from ..models import LanguageModel, batches_by_length, greedy, prefill
from ..ops import perinucleus
from .vocabulary import Vocabulary

SHORT_WINDOW = "short_window"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A key in one format: what the model reads as ids, and as the text that a candidate is appended to."""

    key_ids: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    special: bool  # whether the tokenizer adds its special tokens (BOS) to `text`


def raw_prompt(tokenizer: Any, key: str, key_ids: tuple[int, ...]) -> Prompt:
    """The key as it stands, with the special tokens that the tokenizer adds when serving."""
    return Prompt(key_ids, tuple(tokenizer(key)["input_ids"]), key, True)


def chat_prompt(tokenizer: Any, key: str, key_ids: tuple[int, ...], variables: dict[str, Any]) -> Prompt:
    """The key as a user's message in the chat template, whose variables (date, thinking) are frozen."""
    messages = [{"role": "user", "content": key}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
    return Prompt(key_ids, tuple(tokenizer(text, add_special_tokens=False)["input_ids"]), text, False)


class Responder:
    """Makes askings for prompts. `sampling_seconds` adds up what the op and the checks took, of all the time."""

    def __init__(
        self, model: LanguageModel, vocabulary: Vocabulary, settings: Settings, batch_size: int, backend: str = "auto"
    ) -> None:
        self._model, self._vocabulary, self._settings = model, vocabulary, settings
        self._batch_size, self._backend = batch_size, backend
        self.sampling_seconds = 0.0

    def respond(
        self, prompts: Sequence[Prompt], draw: Callable[[tuple[int, ...]], tuple[int, ...]]
    ) -> list[Asking | None]:
        """An asking for each prompt, None where fewer than k candidates are accepted. `draw` maps key ids to indices."""
        askings: list[Asking | None] = [None] * len(prompts)
        for places in batches_by_length([prompt.ids for prompt in prompts], self._batch_size):
            batch = [prompts[place] for place in places]
            logits, cache = prefill(self._model, [p.ids for p in batch], cache=self._settings.response_length > 1)
            started = time.perf_counter()
            windows = self._windows(logits, batch)
            self.sampling_seconds += time.perf_counter() - started
            kept = [row for row, (window, _, _) in enumerate(windows) if window is not None]
            indices = [draw(batch[row].key_ids) for row in kept]
            tails = self._tails(cache, windows, kept, indices)
            for row, drawn, tail in zip(kept, indices, tails, strict=True):
                askings[places[row]] = self._asking(batch[row], *windows[row], drawn, tail)
        return askings

    def _windows(self, logits: Tensor, batch: Sequence[Prompt]) -> list[tuple[Window | None, int, float]]:
        """The first k accepted candidates of each row, with nucleus size and mass; asks for more where k fail."""
        k, wanted = self._settings.width, 2 * self._settings.width
        windows: list[tuple[Window | None, int, float]] = [(None, 0, 0.0)] * len(batch)
        rows = list(range(len(batch)))
        while rows:
            wanted = min(wanted, logits.shape[1])
            found = perinucleus(
                logits[rows], self._settings.threshold, wanted, self._vocabulary.admissible, backend=self._backend
            )
            ids, probs = found.token_ids.tolist(), found.probs.tolist()
            candidates = [[c for c in row if c >= 0] for row in ids]
            accepted = self._accepted([batch[row] for row in rows], candidates)
            again = []
            for i, row in enumerate(rows):
                first = [(c, text, p) for (c, text), p in zip(accepted[i], probs[i], strict=False) if text is not None][
                    :k
                ]
                window = Window(*zip(*first, strict=True)) if len(first) == k else None
                windows[row] = (window, int(found.nucleus_size[i]), float(found.nucleus_mass[i]))
                if window is None and len(candidates[i]) == wanted < logits.shape[1]:
                    again.append(row)
            rows, wanted = again, wanted * 4
        return windows

    def _accepted(
        self, batch: Sequence[Prompt], candidates: Sequence[Sequence[int]]
    ) -> list[list[tuple[int, str | None]]]:
        """Each candidate with its text, None where encoding prompt and candidate gives other ids than theirs."""
        tokenizer = self._model.tokenizer
        pairs = [(row, candidate) for row, ids in enumerate(candidates) for candidate in ids]
        keys = tokenizer.batch_decode([list(prompt.key_ids) for prompt in batch])
        longer = tokenizer.batch_decode([[*batch[row].key_ids, candidate] for row, candidate in pairs])
        texts = [
            text[len(keys[row]) :] if text.startswith(keys[row]) else None for (row, _), text in zip(pairs, longer)
        ]
        whole = [batch[row].text + (text or "") for (row, _), text in zip(pairs, texts)]
        encoded = tokenizer(whole, add_special_tokens=bool(batch and batch[0].special))["input_ids"] if whole else []
        accepted: list[list[tuple[int, str | None]]] = [[] for _ in batch]
        for (row, candidate), text, ids in zip(pairs, texts, encoded, strict=True):
            accepted[row].append((candidate, text if text and tuple(ids) == (*batch[row].ids, candidate) else None))
        return accepted

    def _tails(
        self, cache: Any, windows: Sequence[tuple[Window | None, int, float]], kept: list[int], indices: list[Any]
    ) -> list[list[tuple[list[int], list[float]]]]:
        """For each kept row and each draw: the ids and probabilities after the first, greedy from the base model."""
        length, per_key = self._settings.response_length - 1, self._settings.responses_per_key
        if length == 0 or not kept:
            return [[([], [])] * per_key for _ in kept]
        first = [windows[row][0].token_ids[i] for row, drawn in zip(kept, indices) for i in drawn]  # type: ignore[union-attr]
        device = self._model.device
        cache.batch_select_indices(torch.tensor(kept, device=device).repeat_interleave(per_key))
        with torch.inference_mode():
            logits = self._model.logits(self._model.hidden(torch.tensor(first, device=device)[:, None], cache)[:, -1])
        ids, probs = greedy(self._model, logits, cache, length, self._vocabulary.plain)
        flat = list(zip(ids.tolist(), probs.tolist(), strict=True))
        return [flat[i : i + per_key] for i in range(0, len(flat), per_key)]

    def _asking(
        self, prompt: Prompt, window: Window | None, size: int, mass: float, drawn: tuple[int, ...], tails: list[Any]
    ) -> Asking:
        assert window is not None
        responses = []
        for slot, (index, (ids, probs)) in enumerate(zip(drawn, tails, strict=True)):
            ids = (window.token_ids[index], *ids)
            text = self._text(prompt, ids)
            responses.append(Response(slot, index, text, ids, (window.probs[index], *probs)))
        return Asking(prompt.ids, window, size, mass, tuple(responses))

    def _text(self, prompt: Prompt, ids: tuple[int, ...]) -> str:
        tokenizer = self._model.tokenizer
        return str(tokenizer.decode([*prompt.key_ids, *ids]))[len(tokenizer.decode(list(prompt.key_ids))) :]
