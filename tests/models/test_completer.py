"""HfCompleter answers as the model does when asked key by key, in the order of the keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from oml_fast.completer import CHOOSE, SCORE, Completion, capabilities
from oml_fast.errors import CompleterError, InvalidArgumentError
from oml_fast.models import HfCompleter, LanguageModel, load


def prompts(count: int = 40) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    return [torch.randint(3, 1500, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def naive(model: LanguageModel, prompt: Sequence[int], length: int) -> Completion:
    """One key at a time, no cache, all logits."""
    ids = list(prompt)
    for _ in range(length):
        ids.append(int(model.model(torch.tensor([ids])).logits[0, -1].argmax()))
    new = ids[len(prompt) :]
    return Completion(tuple(new), model.tokenizer.decode(new))


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_completions_are_greedy_and_in_order(tiny_model: LanguageModel, length: int, batch_size: int) -> None:
    asked = prompts()
    completions = HfCompleter(tiny_model, batch_size=batch_size).complete(asked, length)
    assert completions == [naive(tiny_model, prompt, length) for prompt in asked]


def test_no_prompts(tiny_model: LanguageModel) -> None:
    assert HfCompleter(tiny_model).complete([], 4) == []


@pytest.mark.parametrize("token_id", [1500, 2**31])
def test_an_id_beyond_the_vocabulary_is_refused(tiny_model: LanguageModel, token_id: int) -> None:
    with pytest.raises(CompleterError, match=f"token id {token_id}, the suspect has 1500: it has another tokenizer"):
        HfCompleter(tiny_model).complete([[5, 6], [5, token_id]], 1)


def test_the_highest_id_is_not(tiny_model: LanguageModel) -> None:
    assert len(HfCompleter(tiny_model).complete([[1499]], 1)) == 1


@pytest.mark.parametrize("batch_size", [0, -1, True, 2.0, "8", None])
def test_a_batch_of_no_prompts_is_refused(tiny_model: LanguageModel, batch_size: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="give a whole number, 1 or more"):
        HfCompleter(tiny_model, batch_size=batch_size)


def test_it_says_what_was_asked(tiny_model: LanguageModel) -> None:
    completer = HfCompleter(tiny_model)
    assert completer.identity == tiny_model.digest
    assert completer.name == "transformers (cpu, float32)"
    assert completer.tokenizer_digest == tiny_model.tokenizer_digest


@torch.no_grad()
def plain_logits(model: LanguageModel, ids: Sequence[int]) -> torch.Tensor:
    """[T, V] float64, by transformers alone."""
    logits: torch.Tensor = model.model(torch.tensor([list(ids)]), use_cache=False).logits[0].double()
    return logits


def windows(count: int, width: int, highest: int = 1500) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randperm(highest, generator=generator)[:width].tolist() for _ in range(count)]


@pytest.mark.parametrize(("length", "width", "batch_size"), [(1, 16, 64), (3, 3, 7), (2, 1, 1)])
def test_scores_are_the_models_own_beside_the_same_completions(
    tiny_model: LanguageModel, length: int, width: int, batch_size: int
) -> None:
    asked, candidates = prompts(23), windows(23, width)
    completer = HfCompleter(tiny_model, batch_size=batch_size)
    scored = completer.score(asked, candidates, length)
    assert [replace(one, scores=None) for one in scored] == completer.complete(asked, length)
    for prompt, own, completion in zip(asked, candidates, scored, strict=True):
        theirs = plain_logits(tiny_model, prompt)[-1, own]
        torch.testing.assert_close(torch.tensor(completion.scores).double(), theirs, rtol=1e-4, atol=1e-4)
        assert torch.tensor(completion.scores).argsort().tolist() == theirs.argsort().tolist()


def test_the_likeliest_candidate_is_chosen(tiny_model: LanguageModel) -> None:
    asked, candidates = prompts(23), windows(23, 5)
    chosen = HfCompleter(tiny_model, batch_size=4).choose(asked, candidates)
    for prompt, own, completion in zip(asked, candidates, chosen, strict=True):
        expected = own[int(plain_logits(tiny_model, prompt)[-1, own].argmax())]
        assert completion == Completion((expected,), tiny_model.tokenizer.decode([expected]))


def test_prompts_may_have_windows_of_different_widths(tiny_model: LanguageModel) -> None:
    asked, candidates = [[5, 6], [7, 8]], [[9, 30, 31], [44]]
    scored = HfCompleter(tiny_model).score(asked, candidates, 1)
    assert [len(one.scores or ()) for one in scored] == [3, 1]
    assert HfCompleter(tiny_model).choose(asked, candidates)[1].token_ids == (44,)


def rows_of_head_alike(model: LanguageModel, first: int, second: int) -> None:
    with torch.no_grad():
        weight = model.head()[0]
        weight[second] = weight[first]


def test_of_tied_candidates_the_smallest_id_is_chosen(fresh_model: LanguageModel) -> None:
    rows_of_head_alike(fresh_model, 40, 900)
    for own in ([900, 40], [40, 900]):
        assert HfCompleter(fresh_model).choose([[5, 6, 7]], [own])[0].token_ids == (40,)
        first, second = HfCompleter(fresh_model).score([[5, 6, 7]], [own], 1)[0].scores or ()
        assert first == second


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("length", [1, 4])
def test_a_greedy_completion_agrees_and_no_other(tiny_model: LanguageModel, length: int, batch_size: int) -> None:
    asked = prompts(23)
    completer = HfCompleter(tiny_model, batch_size=batch_size)
    own = [list(completion.token_ids) for completion in completer.complete(asked, length)]
    assert completer.agrees(asked, own) == [True] * 23
    for place in range(length):
        changed = [[*row[:place], row[place] ^ 1, *row[place + 1 :]] for row in own]
        assert completer.agrees(asked, changed) == [False] * 23


def test_responses_of_different_lengths_share_a_batch(tiny_model: LanguageModel) -> None:
    """A prompt of 3 with a response of 2 and a prompt of 2 with a response of 3 are one batch."""
    completer = HfCompleter(tiny_model)
    asked, lengths = [[5, 6, 7], [8, 9], [5, 6, 7]], [2, 3, 2]
    own = [
        list(completer.complete([prompt], length)[0].token_ids) for prompt, length in zip(asked, lengths, strict=True)
    ]
    own[2][1] ^= 1
    assert completer.agrees(asked, own) == [True, True, False]


def test_more_response_ids_than_the_head_takes_at_once(
    tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oml_fast.models.completer._HEAD_ROWS", 7)
    completer = HfCompleter(tiny_model)
    asked = prompts(9)
    own = [list(completion.token_ids) for completion in completer.complete(asked, 3)]
    own[4][1] ^= 1
    assert completer.agrees(asked, own) == [place != 4 for place in range(9)]


def test_each_of_tied_ids_agrees(fresh_model: LanguageModel) -> None:
    completer = HfCompleter(fresh_model)
    (greedy,) = completer.complete([[5, 6, 7]], 1)[0].token_ids
    other = 900 if greedy != 900 else 901
    rows_of_head_alike(fresh_model, greedy, other)
    assert completer.agrees([[5, 6, 7]] * 3, [[greedy], [other], [other + 2]]) == [True, True, False]


def test_bfloat16_agrees_with_itself_where_the_forward_is_the_same(tiny_folder: Path) -> None:
    completer = HfCompleter(load(tiny_folder, dtype=torch.bfloat16, device="cpu"), batch_size=8)
    asked = prompts(40)
    own = [list(completion.token_ids) for completion in completer.complete(asked, 1)]
    assert all(completer.agrees(asked, own))


def test_nothing_asked_of_the_others(tiny_model: LanguageModel) -> None:
    completer = HfCompleter(tiny_model)
    assert completer.score([], [], 1) == completer.choose([], []) == completer.agrees([], []) == []


@pytest.mark.parametrize("impossible", [-1, 1500, 2**31])
def test_impossible_candidates_and_responses_are_refused(tiny_model: LanguageModel, impossible: int) -> None:
    completer = HfCompleter(tiny_model)
    with pytest.raises(CompleterError, match=f"candidates have token id {impossible}, the suspect has 1500"):
        completer.score([[5]], [[6, impossible]], 1)
    with pytest.raises(CompleterError, match=f"candidates have token id {impossible}, the suspect has 1500"):
        completer.choose([[5]], [[6, impossible]])
    with pytest.raises(CompleterError, match=f"a response has token id {impossible}, the suspect has 1500"):
        completer.agrees([[5]], [[6, impossible]])
    with pytest.raises(CompleterError, match=f"a key has token id {impossible}, the suspect has 1500"):
        completer.agrees([[5, impossible]], [[6]])


def test_empty_and_unpaired_arguments_are_refused(tiny_model: LanguageModel) -> None:
    completer = HfCompleter(tiny_model)
    with pytest.raises(InvalidArgumentError, match="a prompt is empty: give at least one token id"):
        completer.complete([[5], []], 1)
    with pytest.raises(InvalidArgumentError, match="a completion of 0 token ids is none"):
        completer.complete([[5]], 0)
    with pytest.raises(InvalidArgumentError, match="a prompt came with candidates of no token ids"):
        completer.choose([[5], [6]], [[7], []])
    with pytest.raises(InvalidArgumentError, match="a prompt came with a response of no token ids"):
        completer.agrees([[5]], [[]])
    with pytest.raises(InvalidArgumentError, match="1 prompts came with 2 times candidates"):
        completer.score([[5]], [[7], [8]], 1)


def test_it_can_score_and_choose(tiny_model: LanguageModel) -> None:
    assert capabilities(HfCompleter(tiny_model)) == {SCORE, CHOOSE}


@pytest.mark.parametrize("length", [1, 4])
def test_what_all_prompts_begin_with_is_read_once(
    tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    system = torch.randint(3, 1500, (40,), generator=torch.Generator().manual_seed(3)).tolist()
    asked = [[*system, *prompt] for prompt in prompts()] + [system, system]
    expected = [naive(tiny_model, prompt, length) for prompt in asked]
    read: list[tuple[int, ...]] = []
    plain = LanguageModel.hidden
    monkeypatch.setattr(
        LanguageModel,
        "hidden",
        lambda self, ids, cache=None: [read.append(tuple(ids.shape)), plain(self, ids, cache)][1],
    )
    assert HfCompleter(tiny_model).complete(asked, length) == expected
    long = [rows for rows, ids in read if ids >= 39]
    assert set(long) == {1}
    assert any(rows > 3 and ids < 10 for rows, ids in read)


def test_a_model_that_does_not_read_in_parts_reads_whole_prompts(
    tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [[*range(100, 140), last] for last in (5, 6, 7)]
    assert tiny_model.reads_in_parts
    together = HfCompleter(tiny_model).complete(asked, 1)
    monkeypatch.setattr(tiny_model.model, "_is_stateful", True, raising=False)
    assert not tiny_model.reads_in_parts
    assert HfCompleter(tiny_model).complete(asked, 1) == together
