"""The whitening of a layer's inputs, against their second moment by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from architectures import CONFIGURATIONS, random_model
from torch import Tensor

from oml_fast.embed.whitening import Inputs, whitening
from oml_fast.errors import InvalidArgumentError
from oml_fast.models import LanguageModel, load

DTYPES = [torch.float32, torch.bfloat16]


def sequences(count: int, length: int, seed: int = 0) -> list[list[int]]:
    return torch.randint(3, 1500, (count, length), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def states(model: LanguageModel, texts: Sequence[Sequence[int]], name: str) -> list[Tensor]:
    """[T, in] float64 of each text: what the layer `name` reads, one text at a time."""
    found: list[Tensor] = []
    layer = model.model.get_submodule(name)
    hook = layer.register_forward_pre_hook(lambda _, args: found.append(args[0][0].double()))
    for text in texts:
        model.model(torch.tensor([text]))
    hook.remove()
    return found


def expected(moment: Tensor, ridge: float) -> Tensor:
    """P, by its definition: c (C + ridge mean(C) I)^-1/2, the mean square of its eigenvalues 1."""
    inverse = torch.linalg.inv(moment + ridge * moment.diag().mean() * torch.eye(len(moment), dtype=moment.dtype))
    values, vectors = torch.linalg.eigh(inverse / (inverse.trace() / len(inverse)))
    return vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T


LAYERS = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj"]


@pytest.mark.parametrize("ridge", [0.01, 1.0])
@pytest.mark.parametrize("name", LAYERS)
def test_it_whitens_what_the_layer_reads(tiny_model: LanguageModel, name: str, ridge: float) -> None:
    texts = [*sequences(20, 12), *sequences(3, 5)]  # more than one batch, and of two lengths
    found = whitening(tiny_model, [Inputs(texts)], ridge)[tiny_model.model.get_submodule(name).weight]
    rows = torch.cat(states(tiny_model, texts, name))
    moment = rows.T @ rows / len(rows)
    wanted = expected(moment, ridge)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-3 * float(wanted.abs().max()))
    square = found.double() @ found.double()
    product = square @ (moment + ridge * moment.diag().mean() * torch.eye(len(moment), dtype=torch.float64))
    unit = product / product.diag().mean()
    torch.testing.assert_close(unit, torch.eye(len(unit), dtype=torch.float64), rtol=0, atol=0.01)
    torch.testing.assert_close(found, found.T, rtol=0, atol=1e-4)


def test_the_mean_square_of_its_eigenvalues_is_1(tiny_model: LanguageModel) -> None:
    for matrix in whitening(tiny_model, [Inputs(sequences(4, 9))], 0.1).values():
        assert float(torch.linalg.eigvalsh(matrix).square().mean()) == pytest.approx(1, rel=1e-3)


def test_a_large_ridge_whitens_nothing(tiny_model: LanguageModel) -> None:
    for matrix in whitening(tiny_model, [Inputs(sequences(4, 9))], 1e4).values():
        torch.testing.assert_close(matrix, torch.eye(len(matrix)), rtol=0, atol=0.01)


def test_each_part_weighs_the_same_and_last_counts_only_the_last(tiny_model: LanguageModel) -> None:
    parts = [Inputs(sequences(20, 12)), Inputs(sequences(3, 7, seed=1)), Inputs(sequences(5, 6, seed=2), last=True)]
    name = LAYERS[1]
    found = whitening(tiny_model, parts, 0.5)[tiny_model.model.get_submodule(name).weight]
    moment = torch.zeros(64, 64, dtype=torch.float64)
    for part in parts:
        read = states(tiny_model, part.sequences, name)
        rows = torch.cat([state[-1:] if part.last else state for state in read])
        moment += rows.T @ rows / len(rows)
    wanted = expected(moment, 0.5)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-3 * float(wanted.abs().max()))
    without = whitening(tiny_model, parts[:2], 0.5)[tiny_model.model.get_submodule(name).weight]
    assert not torch.allclose(found, without, atol=0.01)


def test_layers_that_read_the_same_share_one(tiny_model: LanguageModel) -> None:
    found = whitening(tiny_model, [Inputs(sequences(20, 6)), Inputs(sequences(4, 5), last=True)], 0.1)
    for layer in tiny_model.model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        assert found[attention.q_proj.weight] is found[attention.k_proj.weight] is found[attention.v_proj.weight]
        assert found[mlp.gate_proj.weight] is found[mlp.up_proj.weight]
        own = [attention.q_proj, attention.o_proj, mlp.gate_proj, mlp.down_proj]
        assert len({id(found[module.weight]) for module in own}) == 4
        assert [len(found[module.weight]) for module in own] == [64, 64, 64, 128]
    first, second = tiny_model.model.model.layers
    assert found[first.self_attn.q_proj.weight] is not found[second.self_attn.q_proj.weight]
    assert len(found) == 14  # embeddings, head and norms have none


def test_weights_that_are_stored_the_other_way_round_have_one_of_their_inputs() -> None:
    model = random_model(CONFIGURATIONS["gpt2"]())
    texts = torch.randint(3, 400, (20, 12), generator=torch.Generator().manual_seed(0)).tolist()
    found = whitening(model, [Inputs(texts)], 0.1)
    assert len(found) == 8
    for name, width in (("transformer.h.1.mlp.c_fc", 32), ("transformer.h.1.mlp.c_proj", 128)):
        rows = torch.cat(states(model, texts, name))
        wanted = expected(rows.T @ rows / len(rows), 0.1)
        assert wanted.shape == (width, width)
        matrix = found[model.model.get_submodule(name).weight].double()
        torch.testing.assert_close(matrix, wanted, rtol=0, atol=2e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_kept_in_the_weights_precision_and_leaves_no_trace(tiny_folder: object, dtype: torch.dtype) -> None:
    model = load(tiny_folder, dtype=dtype, device="cpu")  # type: ignore[arg-type]
    found = whitening(model, [Inputs(sequences(4, 9))], 0.1)
    assert {matrix.dtype for matrix in found.values()} == {dtype}
    assert not any(matrix.is_inference() for matrix in found.values())
    assert not any(module._forward_pre_hooks for module in model.model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.model.parameters())


def test_the_hooks_are_taken_off_after_an_error(fresh_model: LanguageModel) -> None:
    with pytest.raises(IndexError):
        whitening(fresh_model, [Inputs([[10**6]])], 0.1)
    assert not any(module._forward_pre_hooks for module in fresh_model.model.modules())


def test_a_model_without_blocks_is_refused(fresh_model: LanguageModel) -> None:
    fresh_model.model.model.layers = torch.nn.Identity()
    with pytest.raises(InvalidArgumentError, match="has no list of blocks"):
        whitening(fresh_model, [Inputs(sequences(1, 4))], 0.1)
