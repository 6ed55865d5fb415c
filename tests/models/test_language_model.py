"""A model cut into backbone and head computes what the model itself computes, or is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from architectures import CONFIGURATIONS, SIZES, VOCABULARY, random_model

from oml_fast.errors import InvalidArgumentError
from oml_fast.models import LanguageModel

IDS = torch.tensor([[5, 300, 7, 42, 399], [1, 2, 3, 4, 0]])


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_logits_are_those_of_the_model(name: str) -> None:
    model = random_model(CONFIGURATIONS[name]())
    with torch.no_grad():
        theirs = model.model(input_ids=IDS).logits
        ours = model.logits(model.hidden(IDS).flatten(0, 1)).view_as(theirs)
    assert model.vocabulary == VOCABULARY
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_configurations_change_their_logits_as_they_say() -> None:
    """Without its softcap, scale or bias each of these heads would give other logits: the test above sees them."""
    for name in ("gemma2, softcap and sliding window", "granite, logits divided", "cohere, logits multiplied"):
        model = random_model(CONFIGURATIONS[name]())
        with torch.no_grad():
            hidden = model.hidden(IDS)[0]
            plain = hidden @ model.head()[0].T
            assert (model.logits(hidden) - plain).abs().max() > 0.1
    _, bias = random_model(CONFIGURATIONS["phi, bias in the head"]()).head()
    assert bias is not None


def test_logits_with_a_kept_head_do_not_follow_the_model(fresh_model: LanguageModel) -> None:
    weight, bias = fresh_model.head()
    kept = (weight.detach().clone(), bias)
    with torch.no_grad():
        hidden = fresh_model.hidden(torch.tensor([[5, 6, 7]]))[0]
        before = fresh_model.logits(hidden)
        weight.mul_(2)
        assert torch.equal(fresh_model.logits(hidden, kept), before)
        assert not torch.equal(fresh_model.logits(hidden), before)


def _doubled(logits: torch.Tensor) -> torch.Tensor:
    return 2 * logits


def _capped(logits: torch.Tensor) -> torch.Tensor:
    return logits.clamp(max=1.0)


def _without_one(logits: torch.Tensor) -> torch.Tensor:
    return logits.index_fill(-1, torch.tensor([17]), -1e4)


def _narrower(logits: torch.Tensor) -> torch.Tensor:
    return logits[..., :-1]


@pytest.mark.parametrize("change", [_doubled, _capped, _without_one, _narrower])
def test_an_architecture_that_changes_its_logits_in_another_way_is_refused(
    change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = transformers.LlamaForCausalLM.forward

    def forward(self: Any, **arguments: Any) -> Any:
        output = plain(self, **arguments)
        output.logits = change(output.logits)
        return output

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", forward)
    with pytest.raises(InvalidArgumentError, match="LlamaForCausalLM changes its logits in a way that"):
        random_model(CONFIGURATIONS["llama"]())


@pytest.mark.parametrize(
    "configuration",
    [
        transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4),
        transformers.RecurrentGemmaConfig(**SIZES, lru_width=32, attention_window_size=4),
    ],
    ids=["mamba", "recurrent_gemma"],
)
def test_an_architecture_without_a_key_value_cache_is_refused(configuration: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="has no key-value cache that oml_fast can use"):
        random_model(configuration)


def test_an_architecture_that_sees_what_comes_later_is_refused() -> None:
    sizes = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
    with pytest.raises(InvalidArgumentError, match="BertLMHeadModel"):
        random_model(transformers.BertConfig(**sizes))


def test_logits_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = transformers.LlamaForCausalLM.forward

    def forward(self: Any, **arguments: Any) -> Any:
        output = plain(self, **arguments)
        output.logits = output.logits * torch.inf
        return output

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", forward)
    with pytest.raises(InvalidArgumentError, match="random: its logits are not finite"):
        random_model(CONFIGURATIONS["llama"]())


# --- states of sequences


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_states_of_different_lengths_are_those_of_each_alone(name: str) -> None:
    """One row holds them all, and none sees another."""
    model = random_model(CONFIGURATIONS[name]())
    sequences = [list(range(3, 3 + length)) for length in (6, 10, 3, 8, 2)]
    starts = [1, 4, 2, 7, 1]
    with torch.no_grad():
        found = model.states(sequences, starts)
        alone = [model.hidden(torch.tensor([s]))[0, start - 1 : -1] for s, start in zip(sequences, starts, strict=True)]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_states_of_one_length_are_a_batch(tiny_model: LanguageModel) -> None:
    sequences = torch.arange(3, 27).view(3, 8).tolist()
    with torch.no_grad():
        found = tiny_model.states(sequences, [3, 1, 7])
        whole = tiny_model.hidden(torch.tensor(sequences))
    expected = torch.cat([whole[0, 2:-1], whole[1, 0:-1], whole[2, 6:-1]])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
