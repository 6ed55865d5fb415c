"""Hosts: an honest one is the plain completer; rewriting, refusing and choosing do what they say in any batch."""

from __future__ import annotations

import torch
from torch import Tensor

from oml_fast.evaluate.hosts import Choose, Follower, Host, copy_of
from oml_fast.models import HfCompleter, LanguageModel

PROMPTS = [[5, 6, 7], [8, 9, 10, 11], [12, 13, 14], [20]]


def test_an_honest_host_answers_like_the_plain_completer(tiny_model: LanguageModel) -> None:
    for length in (1, 4):
        assert Host(tiny_model, "honest").complete(PROMPTS, length) == HfCompleter(tiny_model).complete(PROMPTS, length)


def test_a_host_rewrites_and_refuses_in_the_order_of_the_prompts(tiny_model: LanguageModel) -> None:
    host = Host(tiny_model, "picky", rewrite=lambda ids: None if len(ids) == 4 else [1, *ids])
    plain = HfCompleter(tiny_model).complete([[1, *prompt] for prompt in PROMPTS], 3)
    found = host.complete(PROMPTS, 3)
    assert found[1].token_ids == ()
    assert found[1].text == ""
    assert [found[i] for i in (0, 2, 3)] == [plain[i] for i in (0, 2, 3)]


def test_a_strategy_sees_its_prompts_and_what_it_chose(tiny_model: LanguageModel) -> None:
    seen: list[list[list[int]]] = []

    def strategy(prompts: Tensor) -> Choose:
        def choose(logits: Tensor, chosen: Tensor) -> Tensor:
            assert logits.dtype == torch.float32
            seen.append(torch.cat([prompts, chosen], 1).tolist())
            return prompts[:, -1] + chosen.shape[1]

        return choose

    (answer,) = Host(tiny_model, "counts", strategy=strategy).complete([[5, 6, 7]], 3)
    assert answer.token_ids == (7, 8, 9)
    assert seen == [[[5, 6, 7]], [[5, 6, 7, 7]], [[5, 6, 7, 7, 8]]]


def test_the_batch_changes_no_answer(tiny_model: LanguageModel) -> None:
    prompts = [[i, i + 1, i + 2] for i in range(20, 60)]
    one, many = (Host(tiny_model, "honest", batch_size=size).complete(prompts, 2) for size in (1, 40))
    assert one == many


def test_a_follower_reads_along(tiny_model: LanguageModel) -> None:
    prompts, chosen = torch.tensor([[5, 6, 7], [8, 9, 10]]), torch.tensor([[3, 4, 5], [6, 7, 8]])
    follower = Follower(tiny_model, prompts)
    for step in range(4):
        whole = torch.cat([prompts, chosen[:, :step]], 1)
        with torch.no_grad():
            wanted = tiny_model.model(whole).logits[:, -1]
        torch.testing.assert_close(follower.logits(chosen[:, :step]), wanted, rtol=1e-4, atol=1e-4)


def test_a_copy_is_another_model(tiny_model: LanguageModel) -> None:
    copied = copy_of(tiny_model, "copy")
    first = next(tiny_model.model.parameters()).detach().clone()
    with torch.no_grad():
        next(copied.model.parameters()).zero_()
    assert torch.equal(next(tiny_model.model.parameters()), first)
    assert (copied.name, copied.digest) == ("copy", tiny_model.digest)
