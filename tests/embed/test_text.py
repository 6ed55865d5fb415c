"""Text that the base model writes, to be held by."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny import SPECIAL

from oml_fast.embed import sample_texts
from oml_fast.embed.text import sample_chats
from oml_fast.models import LanguageModel, load


def test_the_seed_decides(tiny_model: LanguageModel) -> None:
    one, again, other = (sample_texts(tiny_model, 12, 20, seed) for seed in (1, 1, 2))
    assert one == again
    assert all(a != b for a, b in zip(one.sequences, other.sequences, strict=True))


def test_the_batch_size_does_not(tiny_model: LanguageModel) -> None:
    assert sample_texts(tiny_model, 12, 8, 1, batch_size=1) == sample_texts(tiny_model, 12, 8, 1)


def test_every_second_text_answers_a_question(tiny_model: LanguageModel) -> None:
    texts = sample_texts(tiny_model, 12, 20, 3)
    for place, (ids, start) in enumerate(zip(*texts, strict=True)):
        assert len(ids) - start == 20
        opening = tiny_model.tokenizer.decode(ids[:start])
        if place % 2:
            assert opening.startswith('<|im_start|>user\nTell me about "')
            assert opening.endswith('".<|im_end|>\n<|im_start|>assistant\n')
        else:
            assert start == 1
            assert ids[0] not in tiny_model.tokenizer.all_special_ids


def test_without_a_template_none_does(fresh_model: LanguageModel) -> None:
    fresh_model.tokenizer.chat_template = None
    texts = sample_texts(fresh_model, 6, 10, 3)
    assert texts.starts == [1] * 6
    assert {len(ids) for ids in texts.sequences} == {11}


def test_texts_begin_with_bos_where_texts_do(bos_folder: Path) -> None:
    model = load(bos_folder, device="cpu")
    texts = sample_texts(model, 6, 10, 3)
    assert all(ids[0] == 0 and start == 2 for ids, start in list(zip(*texts, strict=True))[::2])


def test_no_special_token_is_sampled(tiny_model: LanguageModel) -> None:
    texts = sample_texts(tiny_model, 40, 30, 5)
    special = {tiny_model.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    assert not special & {i for ids, start in zip(*texts, strict=True) for i in ids[start:]}


def test_the_template_is_given_a_date_and_no_thinking(fresh_model: LanguageModel) -> None:
    """Otherwise a template may write today's, and the same seed would give other text tomorrow."""
    fresh_model.tokenizer.chat_template = (
        "{{ date_string if date_string is defined else 'today' }} {{ enable_thinking }}"
    )
    ids, start = (part[1] for part in sample_texts(fresh_model, 2, 5, 0))
    assert fresh_model.tokenizer.decode(ids[:start]) == "01 Jan 2026 False"


def test_no_texts_at_all(tiny_model: LanguageModel) -> None:
    assert sample_texts(tiny_model, 0, 10, 0) == ([], [])


def test_tokens_that_the_model_does_not_know_are_not_sampled(fresh_model: LanguageModel) -> None:
    """A tokenizer may have had tokens added for which the model was never resized."""
    fresh_model.tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    assert len(fresh_model.tokenizer) > fresh_model.vocabulary
    texts = sample_texts(fresh_model, 4, 10, 0)
    assert max(i for ids in texts.sequences for i in ids) < fresh_model.vocabulary


def test_texts_follow_the_models_distribution(tiny_model: LanguageModel) -> None:
    """What is sampled is about as probable as the model's entropy says."""
    texts = sample_texts(tiny_model, 60, 20, 7)
    surprise, entropy = [], []
    for ids, start in zip(*texts, strict=True):
        with torch.no_grad():
            logits = tiny_model.model(torch.tensor([ids])).logits[0, start - 1 : -1].double()
        logits[:, tiny_model.tokenizer.all_special_ids] = -torch.inf
        log_probs = logits.log_softmax(-1)
        surprise.append(-log_probs.gather(1, torch.tensor(ids[start:])[:, None]).mean())
        entropy.append(-(log_probs.exp() * log_probs.clamp(min=-1e4)).sum(-1).mean())
    difference = torch.stack(surprise) - torch.stack(entropy)
    assert abs(float(difference.mean())) < 5 * float(difference.std()) / 60**0.5


def test_chats_are_sampled_on_both_sides_in_the_template(tiny_model: LanguageModel) -> None:
    chats = sample_chats(tiny_model, 5, 6, 4, seed=3)
    marked = tiny_model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "X"}], tokenize=False, add_generation_prompt=True
    )
    before, after = (
        tiny_model.tokenizer(part, add_special_tokens=False)["input_ids"] for part in marked.rsplit("X", 1)
    )
    special = set(tiny_model.tokenizer.all_special_ids)
    for ids, start in zip(chats.sequences, chats.starts, strict=True):
        assert ids[: len(before)] == before
        assert ids[len(before) + 6 : start] == after
        assert len(ids) == start + 4
        assert not special & set(ids[len(before) : len(before) + 6] + ids[start:])
    assert len({tuple(ids) for ids in chats.sequences}) == 5
    assert sample_chats(tiny_model, 5, 6, 4, seed=3) == chats
    assert sample_chats(tiny_model, 5, 6, 4, seed=4) != chats


def test_no_chats_without_a_chat_template(tiny_folder: Path) -> None:
    model = load(tiny_folder, device="cpu")
    model.tokenizer.chat_template = None
    assert sample_chats(model, 5, 6, 4, seed=3).sequences == []
