"""An owner's list of keys, a store, a model that counts its forwards, a clock; and marks that force or that fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oml_fast import OMLModel, issue
from oml_fast.models import LanguageModel
from oml_fast.oml_model import OutputMark
from oml_fast.permission import Amount, KeyList, Nonce, SqliteStore, change_key_file, read_token
from oml_fast.signing import new_signing_key

NOW = 1_800_000_000
OWNER, KEY, OTHER = new_signing_key(), new_signing_key(), new_signing_key()
CHAT = [{"role": "user", "content": "Which licence is this?"}]
PROMPTS = ["Licensed under the Apache", "the work", "You may not use this file", "the terms of"]
END = 2


class Scene:
    """An owner's list of keys, a store that began before the tokens, a model that counts its forwards, and a clock."""

    def __init__(self, folder: Path, model: LanguageModel) -> None:
        self.keys, self.model, self.now, self.forwards = folder / "keys.jws", model, float(NOW), 0
        self.change(lambda keys: keys.with_key(KEY.verification_key, NOW - 1000), issuer="Acme")
        self.store = SqliteStore(folder / "permissions.sqlite", now=NOW - 500)
        model.model.base_model.register_forward_pre_hook(self._count)

    def _count(self, module: Any, given: Any) -> None:
        self.forwards += 1

    def change(self, change: Callable[[KeyList], KeyList], **given: Any) -> None:
        change_key_file(self.keys, OWNER, change, now=NOW - 900, **given)

    def oml(self, base_model: Any = None, **given: Any) -> OMLModel:
        given = {"keys": self.keys, "store": self.store, "clock": lambda: self.now} | given
        return OMLModel(self.model if base_model is None else base_model, OWNER.verification_key, **given)

    def token(self, use: str = "session", key: Any = KEY, **given: Any) -> str:
        given = {"issuer": "Acme", "licensee": "Bolt", "models": self.model.digest, "now": NOW} | given
        return issue(key, use=use, **given)

    def taken(self, token: str) -> Amount:
        return self.store.usage(Nonce.of(read_token(token, lambda kid: KEY.verification_key))).taken

    def expected(self, ids: list[int], length: int) -> str:
        """What transformers' own greedy decoding answers."""
        given = torch.tensor([ids])
        out = self.model.model.generate(
            given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=length, eos_token_id=END
        )
        return str(self.model.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))

    def encoded(self, text: str) -> list[int]:
        return list(self.model.tokenizer(text)["input_ids"])


def forcing(*row: int) -> OutputMark:
    """A mark that makes the first generated ids those of `row`, then the last of them, for whomever."""

    def mark(licensee: str) -> Callable[[Tensor, Tensor], Tensor]:
        first: list[int] = []

        def process(ids: Tensor, logits: Tensor) -> Tensor:
            first[:] = first or [ids.shape[1]]
            wanted = row[min(ids.shape[1] - first[0], len(row) - 1)]
            return torch.full_like(logits, -torch.inf).index_fill(1, torch.tensor([wanted]), 0.0)

        return process

    return mark


def failing(licensee: str) -> Callable[[Tensor, Tensor], Tensor]:
    def process(ids: Tensor, logits: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    return process
