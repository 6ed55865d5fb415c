"""Packed weights change what decoding costs: not its results beyond rounding, nor anything after the context."""

from __future__ import annotations

import copy

import pytest
import torch
from architectures import CONFIGURATIONS, random_model
from torch import nn

from oml_fast.models import LanguageModel, greedy, prefill
from oml_fast.models.packed import packed_weights

PROMPTS = [[5, 6, 7, 8, 9, 10], [300, 2, 44, 9, 9, 9]]


def in_bfloat16(name: str) -> LanguageModel:
    model = random_model(CONFIGURATIONS[name]())
    model.model.bfloat16()
    return model


def patched(model: LanguageModel) -> int:
    return sum("forward" in module.__dict__ for module in model.model.modules())


def logits_of(model: LanguageModel) -> torch.Tensor:
    return prefill(model, PROMPTS, cache=False)[0].float()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_logits_agree_within_rounding_and_forwards_come_back(name: str) -> None:
    model = in_bfloat16(name)
    plain = logits_of(model)
    with packed_weights(model.model):
        assert patched(model)
        torch.testing.assert_close(logits_of(model), plain, rtol=0.05, atol=0.05 * float(plain.std()))
        with packed_weights(model.model):
            pass
        assert patched(model)
        greedy(model, *prefill(model, PROMPTS, cache=True), 3)
    assert not patched(model)
    assert torch.equal(logits_of(model), plain)


def test_forwards_come_back_after_an_exception() -> None:
    model = in_bfloat16("llama")
    with pytest.raises(KeyError), packed_weights(model.model):
        raise KeyError
    assert not patched(model)


@pytest.mark.parametrize("name", ["llama", "llama, tied", "phi, bias in the head"])
def test_changed_weights_are_never_served_stale(name: str) -> None:
    model = in_bfloat16(name)
    changed = copy.deepcopy(model)
    before = logits_of(model)
    with torch.no_grad():
        for parameter in changed.model.parameters():
            parameter.mul_(1.5)
    with packed_weights(model.model):
        logits_of(model)
        with torch.no_grad():
            for parameter in model.model.parameters():
                parameter.mul_(1.5)
        assert torch.equal(logits_of(model), logits_of(changed))
    with packed_weights(model.model):
        after = logits_of(model)
    assert not torch.allclose(after, before, rtol=0.05, atol=0.05 * float(before.std()))
    torch.testing.assert_close(after, logits_of(changed), rtol=0.05, atol=0.05 * float(after.std()))


def test_siblings_share_a_product_only_for_the_same_tensor() -> None:
    """And a replaced weight, and a tensor that needs gradients, go the plain way."""
    torch.manual_seed(0)
    sizes = {"q_proj": 16, "k_proj": 8, "v_proj": 8}
    layers = {name: nn.Linear(32, size, dtype=torch.bfloat16) for name, size in sizes.items()}
    block = nn.ModuleDict(layers)
    one, other = torch.randn(2, 3, 32).bfloat16()
    with torch.no_grad():
        right = {name: (layer(one), layer(other)) for name, layer in layers.items()}
        with packed_weights(block):
            layers["q_proj"](one)
            for name, given in (("k_proj", 0), ("k_proj", 0), ("v_proj", 1), ("v_proj", 0), ("q_proj", 1)):
                torch.testing.assert_close(layers[name]((one, other)[given]), right[name][given], rtol=0.02, atol=0.02)
            layers["q_proj"](one)
            layers["k_proj"].weight = nn.Parameter(torch.zeros(8, 32).bfloat16())
            assert torch.equal(layers["k_proj"](one), layers["k_proj"].bias.expand(3, 8))
            with torch.enable_grad():
                layers["v_proj"](one).sum().backward()
    assert layers["v_proj"].weight.grad is not None


def test_float32_is_left_alone(tiny_model: LanguageModel) -> None:
    with packed_weights(tiny_model.model):
        assert not patched(tiny_model)
