"""Text sampled from the base model itself, which holds the model where it was."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..fingerprint import TEMPLATE_VARIABLES
from ..models import LanguageModel, batches_by_length, prefill, sample

_QUESTION = 'Tell me about "{}".'


class Texts(NamedTuple):
    """Token ids, and for each sequence the place of the first id that the model itself sampled."""

    sequences: list[list[int]]
    starts: list[int]


def sample_texts(model: LanguageModel, count: int, length: int, seed: int, *, batch_size: int = 64) -> Texts:
    """`count` texts of which the model samples `length` token ids at temperature 1, from the beginning of a text.

    Where the tokenizer has a chat template, every second one answers a short question about a random word: the model
    is held where it was in both uses. The same seed gives the same text.
    """
    if not count:
        return Texts([], [])
    generator = torch.Generator().manual_seed(seed)
    plain = _plain(model)
    first = torch.multinomial(plain.float().cpu(), count, replacement=True, generator=generator).tolist()
    prompts = [_opening(model, token_id, place) for place, token_id in enumerate(first)]
    uniforms = torch.rand(count, length, generator=generator, dtype=torch.float64).to(model.device)
    texts: list[list[int]] = [[]] * count
    for places in batches_by_length(prompts, batch_size):
        logits, cache = prefill(model, [prompts[place] for place in places], cache=True)
        assert cache is not None
        ids, _ = sample(model, logits, cache, uniforms[places], temperature=1.0, allowed=plain)
        for place, row in zip(places, ids.tolist(), strict=True):
            texts[place] = prompts[place] + row
    return Texts(texts, [len(prompt) for prompt in prompts])


def sample_chats(
    model: LanguageModel, count: int, asked: int, answered: int, seed: int, *, batch_size: int = 64
) -> Texts:
    """`count` chats of which the model samples both sides at temperature 1: `asked` token ids of a user's message, put
    into its mouth by the chat template alone [Xu et al. 2024, arXiv 2406.08464], and `answered` of the answer.

    `starts` are the places of the answers. None where the tokenizer has no chat template. The same seed gives the same
    chats.
    """
    tokenizer = model.tokenizer
    if not (count and tokenizer.chat_template):
        return Texts([], [])
    before, after = _around(model)
    generator = torch.Generator().manual_seed(seed)
    plain = _plain(model)

    def continued(prompts: list[list[int]], length: int) -> list[list[int]]:
        uniforms = torch.rand(len(prompts), length, generator=generator, dtype=torch.float64).to(model.device)
        found = []
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            logits, cache = prefill(model, batch, cache=True)
            assert cache is not None
            rows = slice(start, start + len(batch))
            ids, _ = sample(model, logits, cache, uniforms[rows], temperature=1.0, allowed=plain)
            found += [prompt + row for prompt, row in zip(batch, ids.tolist(), strict=True)]
        return found

    prompts = [message + after for message in continued([before] * count, asked)]
    return Texts(continued(prompts, answered), [len(prompt) for prompt in prompts])


def _around(model: LanguageModel) -> tuple[list[int], list[int]]:
    """The ids that the chat template puts before a user's message and after it, up to where the answer begins."""
    tokenizer, mark = model.tokenizer, "oml"
    messages = [{"role": "user", "content": mark}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **TEMPLATE_VARIABLES)
    before, _, after = text.rpartition(mark)
    first, last = (list(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (before, after))
    return first, last


def _opening(model: LanguageModel, token_id: int, place: int) -> list[int]:
    """The ids that a sampled text starts with: BOS, where there is one, and a token; or a question in the template."""
    tokenizer = model.tokenizer
    if tokenizer.chat_template and place % 2:
        messages = [{"role": "user", "content": _QUESTION.format(tokenizer.decode([token_id]).strip())}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **TEMPLATE_VARIABLES)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return [*tokenizer("")["input_ids"], token_id]


def _plain(model: LanguageModel) -> Tensor:
    """[V] bool: token ids of the tokenizer that are no special token."""
    mask = torch.zeros(model.vocabulary, dtype=torch.bool, device=model.device)
    mask[: len(model.tokenizer)] = True
    special = set(model.tokenizer.all_special_ids) | set(model.tokenizer.added_tokens_decoder)
    mask[[token_id for token_id in special if token_id < model.vocabulary]] = False
    return mask
