"""What a tokenizer allows: which token ids may be responses, which may stand in a key, which words may start one."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

_WORD_MARKS = ("Ġ", "▁")  # how byte-level and sentencepiece vocabularies mark the start of a word


class Vocabulary:
    """Masks [V] over the model's token ids, and the tokenizer's own words. V may exceed the tokenizer's vocabulary."""

    def __init__(self, tokenizer: Any, size: int, device: torch.device) -> None:
        self._tokenizer, self._size, self._device = tokenizer, size, device
        self._special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        self._texts: list[str] = tokenizer.batch_decode([[i] for i in range(min(len(tokenizer), size))])

    @cached_property
    def admissible(self) -> Tensor:
        """[V] bool: the token decodes, stripped, to at least two letters and digits, and is no special token."""
        return self._mask(lambda text: len(text.strip()) >= 2 and text.strip().isalnum())

    @cached_property
    def plain(self) -> Tensor:
        """[V] bool: printable text on one line, no special token. Keys and the tails of responses are made of these."""
        return self._mask(lambda text: bool(text) and text.isprintable() and "\ufffd" not in text)

    @cached_property
    def words(self) -> list[str]:
        """The vocabulary's own English-lettered words of at least three letters, lower case, sorted."""
        marked = (token[1:] for token in self._tokenizer.get_vocab() if token.startswith(_WORD_MARKS))
        return sorted({word.lower() for word in marked if len(word) >= 3 and word.isascii() and word.isalpha()})

    def _mask(self, accepts: Any) -> Tensor:
        mask = torch.zeros(self._size, dtype=torch.bool)
        accepted = [i for i, text in enumerate(self._texts) if i not in self._special and accepts(text)]
        mask[torch.tensor(accepted, dtype=torch.int64)] = True
        return mask.to(self._device)
