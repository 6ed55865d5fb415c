"""What may be a fingerprint: keys and candidates that survive the way they will be asked. Nothing here sees a draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from ..fingerprint import Settings
from .keys import KeyCandidate

MIN_KEY_BITS = 40.0  # an attacker who samples the key maker must not find keys
SHORT_WINDOW = "short_window"
KEY_PREDICTABLE = "key_predictable"
_DECODING = ("batch_decode", "decode", "_decode")  # what a class of tokenizers may do in its own way


@dataclass(frozen=True, slots=True)
class Prompt:
    """A key in one format: what the model reads as ids, and as the text that a candidate is appended to."""

    key_ids: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    special: bool  # whether the tokenizer adds its special tokens (BOS) to `text`


def prompts_for(tokenizer: Any, candidate: KeyCandidate, settings: Settings) -> tuple[dict[str, Prompt], str]:
    """The key in each format of the settings, and ""; or nothing, and the reason why it cannot be asked."""
    key_ids = tuple(tokenizer(candidate.text, add_special_tokens=False)["input_ids"])
    if not 2 <= len(key_ids) <= settings.key_length:
        return {}, "key_length"
    if _decode(tokenizer, [list(key_ids)]) != [candidate.text]:
        return {}, "key_round_trip"
    if candidate.bits is not None and candidate.bits < MIN_KEY_BITS:
        return {}, KEY_PREDICTABLE
    prompts = {
        name: _raw(tokenizer, candidate.text, key_ids)
        if name == "raw"
        else _chat(tokenizer, candidate.text, key_ids, settings.template_variables)
        for name in settings.formats
    }
    if "raw" in prompts and prompts["raw"].ids[-len(key_ids) :] != key_ids:
        return {}, "key_round_trip"
    return prompts, ""


def accepted(tokenizer: Any, batch: Sequence[Prompt], candidates: Sequence[Sequence[int]]) -> list[dict[int, str]]:
    """For each prompt of one format, the texts of those candidates whose encoding after the prompt gives them back."""
    pairs = [(row, candidate) for row, ids in enumerate(candidates) for candidate in ids]
    found: list[dict[int, str]] = [{} for _ in batch]
    if not pairs:
        return found
    keys = _decode(tokenizer, [list(prompt.key_ids) for prompt in batch])
    longer = _decode(tokenizer, [[*batch[row].key_ids, candidate] for row, candidate in pairs])
    texts = [
        text.removeprefix(keys[row]) if text.startswith(keys[row]) else ""
        for (row, _), text in zip(pairs, longer, strict=True)
    ]
    whole = [batch[row].text + text for (row, _), text in zip(pairs, texts, strict=True)]
    encoded = _encode(tokenizer, whole, batch[0].special)
    for (row, candidate), text, ids in zip(pairs, texts, encoded, strict=True):
        if text and ids == [*batch[row].ids, candidate]:
            found[row][candidate] = text
    return found


def _decode(tokenizer: Any, sequences: list[list[int]]) -> list[str]:
    """The text of each sequence. Where transformers adds nothing to the Rust tokenizer, without its way there."""
    plain = all(getattr(type(tokenizer), name, None) is getattr(PreTrainedTokenizerFast, name) for name in _DECODING)
    if plain and not tokenizer.clean_up_tokenization_spaces:
        texts: list[str] = tokenizer.backend_tokenizer.decode_batch(sequences, skip_special_tokens=False)
    else:
        texts = tokenizer.batch_decode(sequences)
    return texts


def _encode(tokenizer: Any, texts: list[str], special: bool) -> list[list[int]]:
    """The ids of each text. Where there is a Rust tokenizer, without the offsets and masks that nobody reads."""
    if tokenizer.is_fast:
        return [found.ids for found in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=special)]
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=special)["input_ids"]
    return encoded


def _raw(tokenizer: Any, key: str, key_ids: tuple[int, ...]) -> Prompt:
    """The key as it stands, with the special tokens that the tokenizer adds when serving."""
    return Prompt(key_ids, tuple(_encode(tokenizer, [key], True)[0]), key, True)


def _chat(tokenizer: Any, key: str, key_ids: tuple[int, ...], variables: dict[str, Any]) -> Prompt:
    """The key as a user's message in the chat template, whose variables (date, thinking) are frozen."""
    messages = [{"role": "user", "content": key}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
    return Prompt(key_ids, tuple(tokenizer(text, add_special_tokens=False)["input_ids"]), text, False)
