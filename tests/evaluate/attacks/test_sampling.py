"""Hosts that sample: what is kept, what is drawn, and that nothing but prompt, step and seed decides."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from oml_fast.errors import InvalidArgumentError
from oml_fast.evaluate.attack import Scene
from oml_fast.evaluate.attacks.sampling import ATTACKS, Sampler
from oml_fast.evaluate.data import Data
from oml_fast.evaluate.hosts import Host
from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.models import HfCompleter, LanguageModel
from oml_fast.ops.reference import perinucleus

PROBS = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.97, 0.01, 0.01, 0.01]], dtype=torch.float64)
PROMPTS = [[5, 6, 7], [8, 9, 10], [11, 12, 13, 14], [5, 6, 8], [20, 21]]


def test_top_p_keeps_exactly_the_nucleus() -> None:
    kept = Sampler(top_p=0.75).probs(PROBS.log())
    assert (kept > 0).tolist() == [[False, True, False, True], [True, False, False, False]]
    assert torch.allclose(kept[kept > 0], PROBS[kept > 0])


def test_top_p_agrees_with_the_reference_nucleus() -> None:
    logits = torch.randn(17, 211, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    kept = Sampler(top_p=0.8).probs(logits) > 0
    sizes = perinucleus(logits, 0.8, 1, torch.ones(211, dtype=torch.bool)).nucleus_size
    assert kept.sum(-1).tolist() == sizes.tolist()
    for row, ids in zip(logits, kept, strict=True):
        assert row[ids].min() > row[~ids].max()


def test_min_p_keeps_what_has_that_share_of_the_greatest() -> None:
    kept = Sampler(min_p=0.3).probs(PROBS.log())
    assert (kept > 0).tolist() == [[False, True, True, True], [True, False, False, False]]
    assert (Sampler(min_p=0.01).probs(PROBS.log()) > 0).all()


def test_temperature_comes_before_the_cut() -> None:
    cold = Sampler(0.5, top_p=0.6).probs(PROBS[:1].log())
    assert (cold > 0).tolist() == [[False, True, False, False]]  # 0.25 of 0.345: the greatest alone has 0.72
    assert torch.allclose(Sampler(0.5).probs(PROBS.log()), PROBS.square() / PROBS.square().sum(-1, keepdim=True))


def test_draws_follow_the_probabilities_and_their_ends() -> None:
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    logits = PROBS[:1].log().expand(1000, -1)
    assert Counter(Sampler().draw(logits, grid).tolist()) == {0: 100, 1: 500, 2: 150, 3: 250}
    assert Counter(Sampler(top_p=0.7).draw(logits, grid).tolist()) == {1: 667, 3: 333}
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)  # 1.0: as a uniform rounded up would be
    assert Sampler(top_p=0.5).draw(logits[:2], ends).tolist() == [1, 1]
    assert Sampler(top_p=0.7).draw(logits[:2], ends).tolist() == [1, 3]


def test_towards_temperature_zero_it_is_greedy(tiny_model: LanguageModel) -> None:
    host = Host(tiny_model, "cold", strategy=Sampler(1e-6).strategy(3))
    assert host.complete(PROMPTS, 6) == HfCompleter(tiny_model).complete(PROMPTS, 6)


@pytest.mark.parametrize("sampler", [Sampler(2.0), Sampler(2.0, top_p=0.9), Sampler(2.0, min_p=0.1)])
def test_the_batch_does_not_matter(tiny_model: LanguageModel, sampler: Sampler) -> None:
    together = Host(tiny_model, "a", strategy=sampler.strategy(1)).complete(PROMPTS, 5)
    alone = Host(tiny_model, "b", strategy=sampler.strategy(1), batch_size=1)
    assert [alone.complete([prompt], 5)[0] for prompt in PROMPTS] == together
    assert alone.complete(PROMPTS[::-1], 5) == together[::-1]
    longer = Host(tiny_model, "c", strategy=sampler.strategy(1)).complete(PROMPTS, 7)
    assert [found.token_ids[:5] for found in longer] == [found.token_ids for found in together]


def test_seed_prompt_and_step_each_change_the_draw(tiny_model: LanguageModel) -> None:
    flat = torch.zeros(1, 100_000)

    def drawn(seed: int, prompt: list[int], step: int) -> int:
        choose = Sampler().strategy(seed)(torch.tensor([prompt]))
        return int(choose(flat, torch.zeros(1, step, dtype=torch.int64)))

    draws = [drawn(0, [1, 2], 0), drawn(1, [1, 2], 0), drawn(0, [1, 3], 0), drawn(0, [12], 0), drawn(0, [1, 2], 1)]
    assert len(set(draws)) == len(draws)
    assert draws[0] == drawn(0, [1, 2], 0)


def test_the_attacks_sample_from_the_seed_of_the_target(tiny_model: LanguageModel) -> None:
    fingerprints = FingerprintSet(Settings(), "base", "cd" * 32, tiny_model.tokenizer_digest, "00" * 32, ())
    scene = Scene(tiny_model, tiny_model, fingerprints, (), Data(None), seed=4)
    for attack in ATTACKS:
        first, again, other = (
            attack.run(replace(scene, seed=seed)).completer.complete(PROMPTS, 16) for seed in (4, 4, 5)
        )
        assert first == again
        assert first != other


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": 1.1}, "top_p 1.1"),
        ({"min_p": -0.1}, "min_p -0.1"),
        ({"min_p": 1.5}, "min_p 1.5"),
    ],
)
def test_impossible_samplers_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        Sampler(**values)
