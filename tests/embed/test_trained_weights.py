"""Base + change in the model, as it is and as others would leave it; and which weights that is done to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from architectures import CONFIGURATIONS, random_model
from tiny import write_tiny_model
from torch import Tensor, nn

from oml_fast.embed.change import LowRank, Plain, Transposed, Whitened
from oml_fast.embed.optimizer import AnchoredAdamW
from oml_fast.embed.weights import TrainedWeight, View, blocks_of, plain_weights, rounded, trained_weights
from oml_fast.embed.whitening import Inputs, whitening
from oml_fast.errors import InvalidArgumentError
from oml_fast.evaluate.attacks.rounding import GROUP, block_weights, int4
from oml_fast.evaluate.attacks.scaling import linear
from oml_fast.models import LanguageModel, load


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def a_weight(dtype: torch.dtype = torch.float32, *, linear: bool = True) -> tuple[nn.Parameter, TrainedWeight]:
    """Base values of about 1, and a change of about 0.1."""
    parameter = nn.Parameter(random(6, 40).to(dtype))
    weight = TrainedWeight(parameter, Plain(parameter), linear)
    weight.change.values[0].data.copy_(0.1 * random(6, 40, seed=1))
    return parameter, weight


def named(model: LanguageModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.model.named_parameters()}


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


# --- what is written


@DTYPES
def test_the_parameter_becomes_base_and_change(dtype: torch.dtype) -> None:
    parameter, weight = a_weight(dtype)
    base = parameter.detach().clone()
    weight.write()
    expected = (base.float() + 0.1 * random(6, 40, seed=1)).to(dtype)
    assert torch.equal(parameter.detach(), expected)
    weight.write()
    assert torch.equal(parameter.detach(), expected)  # written anew each time, not added up


@DTYPES
@pytest.mark.parametrize("share", [0.0, 0.5, 0.7])
def test_a_share_of_the_change_is_what_a_merge_with_the_base_leaves(dtype: torch.dtype, share: float) -> None:
    """The merge sees two models that were saved in their own precision, and saves a third."""
    parameter, weight = a_weight(dtype)
    base = parameter.detach().clone()
    weight.write()
    saved = parameter.detach().clone()
    weight.write(View(share=share))
    assert torch.equal(parameter.detach(), linear(base.float(), saved.float(), share).to(dtype))
    moved = (parameter.detach().float() - base.float()).norm() / (saved.float() - base.float()).norm()
    assert float(moved) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("group", [GROUP, 128, 7])
@pytest.mark.parametrize("shape", [(4, 128), (3, 100), (1, 5)])
def test_four_bits_are_those_that_the_battery_rounds_to(shape: tuple[int, int], group: int) -> None:
    weight = random(*shape, seed=2)
    weight[0, :3] = 0.0
    assert torch.equal(rounded(weight, 4, group), int4(weight, group))


def test_rounding_is_by_group_and_off_by_half_a_step_at_most() -> None:
    weight = random(8, 96, seed=3)
    for bits, group in ((8, 0), (4, 32), (4, 0), (2, 5)):
        size = group or 96
        found = rounded(weight, bits, group)
        for start in range(0, 96, size):
            part, was = found[:, start : start + size], weight[:, start : start + size]
            step = (was.amax(1).clamp(min=0) - was.amin(1).clamp(max=0)) / (2**bits - 1)
            assert ((part - was).abs().amax(1) <= step * (0.5 + 1e-3) + 1e-6).all()
            assert all(len(row.unique()) <= 2**bits for row in part)
    assert torch.equal(rounded(torch.zeros(2, 6), 4, 3), torch.zeros(2, 6))


@DTYPES
def test_only_matrices_of_blocks_are_seen_rounded(dtype: torch.dtype) -> None:
    for is_linear in (True, False):
        parameter, weight = a_weight(dtype, linear=is_linear)
        weight.write()
        saved = parameter.detach().clone()
        weight.write(View(bits=4, group=32))
        expected = int4(saved.float(), 32).to(dtype) if is_linear else saved
        assert torch.equal(parameter.detach(), expected)


def test_a_shift_is_added_and_taken_off_again() -> None:
    parameter, weight = a_weight()
    weight.write()
    saved = parameter.detach().clone()
    weight.write(View(shift={parameter: torch.full((6, 40), 0.25)}))
    torch.testing.assert_close(parameter.detach(), saved + 0.25)
    weight.write()
    assert torch.equal(parameter.detach(), saved)


def test_steps_are_taken_from_the_weight_itself_wherever_it_was_seen() -> None:
    """Straight through: the gradient may come from a view, the update goes to the change."""
    plain, viewed = a_weight(), a_weight()
    for (parameter, weight), view in ((plain, View()), (viewed, View(share=0.5, bits=4))):
        optimizer = AnchoredAdamW([weight], 1e-2, 0.0)
        weight.write(view)
        parameter.grad = random(6, 40, seed=5)
        optimizer.step()
    assert torch.equal(plain[0].detach(), viewed[0].detach())


def test_a_weight_without_a_gradient_stands_still() -> None:
    parameter, weight = a_weight()
    optimizer = AnchoredAdamW([weight], 1e-2, 0.0)
    parameter.grad = random(6, 40, seed=5)
    optimizer.step()
    before = parameter.detach().clone()
    optimizer.step()
    assert torch.equal(parameter.detach(), before)


def test_plain_weights_are_those_that_want_gradients() -> None:
    parameters = [nn.Parameter(random(3)), nn.Parameter(random(4), requires_grad=False), nn.Parameter(random(5))]
    found = plain_weights(parameters)
    assert [weight.parameter for weight in found] == [parameters[0], parameters[2]]
    assert all(type(weight.change) is Plain for weight in found)


# --- which weights

WRITTEN = {
    "all": lambda name: True,
    "blocks": lambda name: ".layers." in name,
    "mlp_down": lambda name: name.endswith("mlp.down_proj.weight"),
    "last:1": lambda name: ".layers.1." in name,
    "last:2": lambda name: ".layers." in name,
    "lora:3": lambda name: name.endswith("_proj.weight"),
}


@pytest.mark.parametrize("where", WRITTEN)
def test_only_the_weights_that_are_named_change(fresh_model: LanguageModel, where: str) -> None:
    before = named(fresh_model)
    weights = trained_weights(fresh_model, where)
    optimizer = AnchoredAdamW(weights, 1e-2, 0.0)
    for _ in range(2):
        logits = fresh_model.model(torch.tensor([[5, 6, 7, 8]])).logits
        logits.float().log_softmax(-1)[..., 3].sum().backward()
        optimizer.step()
    after = named(fresh_model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if WRITTEN[where](name)}
    assert changed == {name for name, p in fresh_model.model.named_parameters() if p.requires_grad}
    if where.startswith("lora"):
        ranks = {int(torch.linalg.matrix_rank(after[name] - before[name], atol=1e-4)) for name in changed}
        assert max(ranks) == 3


def test_nothing_changes_before_training(fresh_model: LanguageModel) -> None:
    before = named(fresh_model)
    for where in WRITTEN:
        for weight in trained_weights(fresh_model, where):
            weight.write()
        assert all(torch.equal(before[name], value) for name, value in named(fresh_model).items())


def test_the_matrices_that_are_seen_rounded_are_those_that_the_battery_rounds(fresh_model: LanguageModel) -> None:
    with torch.no_grad():
        for weight in trained_weights(fresh_model):
            weight.write(View(bits=4, group=GROUP))
    seen = named(fresh_model)
    fresh = {name: value for name, value in seen.items() if not torch.equal(value, _initial(fresh_model)[name])}
    rounded_by_the_battery = {id(weight) for weight in block_weights(fresh_model)}
    assert set(fresh) == {n for n, p in fresh_model.model.named_parameters() if id(p) in rounded_by_the_battery}


def _initial(model: LanguageModel) -> dict[str, Tensor]:
    return named(load(Path(model.model.name_or_path), device="cpu"))


def test_tied_embeddings_are_one_weight(fresh_model: LanguageModel) -> None:
    model = fresh_model.model
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    found = [w for w in trained_weights(fresh_model) if w.parameter is model.get_input_embeddings().weight]
    assert len(found) == 1
    found[0].change.values[0].data.fill_(0.5)
    before = model.get_output_embeddings().weight.detach().clone()
    found[0].write()
    torch.testing.assert_close(model.get_output_embeddings().weight.detach(), before + 0.5)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert not [w for w in trained_weights(fresh_model, "blocks") if w.parameter is found[0].parameter]


def test_those_with_a_whitening_change_through_it(fresh_model: LanguageModel) -> None:
    down = fresh_model.model.model.layers[0].mlp.down_proj.weight
    found = {id(w.parameter): w for w in trained_weights(fresh_model, "all", {down: torch.eye(128)})}
    assert type(found[id(down)].change) is Whitened
    assert all(type(w.change) is Plain for key, w in found.items() if key != id(down))
    assert all(type(w.change) is LowRank for w in trained_weights(fresh_model, "lora:2"))


def test_the_seed_decides_a_low_rank_change(fresh_model: LanguageModel) -> None:
    one, again, other = (trained_weights(fresh_model, "lora:2", seed=seed) for seed in (0, 0, 1))
    downs = [[weight.change.values[1] for weight in weights] for weights in (one, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(downs[0], downs[1], strict=True))
    assert not torch.equal(downs[0][0], downs[2][0])
    assert not torch.equal(downs[0][0], downs[0][1])


def test_what_is_not_there_is_refused(fresh_model: LanguageModel) -> None:
    with pytest.raises(InvalidArgumentError, match=r"write_to last:3: .* has 2 blocks\."):
        trained_weights(fresh_model, "last:3")
    for block in fresh_model.model.model.layers:
        block.mlp.wide = block.mlp.down_proj  # an architecture that calls it by a name nobody knows
        del block.mlp.down_proj
    with pytest.raises(InvalidArgumentError, match=r"write_to mlp_down: .* has no such weights. Write to all of them"):
        trained_weights(fresh_model, "mlp_down")


@pytest.fixture
def gpt2() -> LanguageModel:
    """Its linear layers keep their weights [in, out]."""
    return random_model(CONFIGURATIONS["gpt2"]())


CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def test_weights_that_are_stored_the_other_way_round_are_rounded_by_groups_of_inputs(gpt2: LanguageModel) -> None:
    before = named(gpt2)
    expected = [int4(weight.detach().clone(), GROUP) for weight in block_weights(gpt2)]
    for weight in trained_weights(gpt2):
        weight.write(View(bits=4, group=GROUP))
    found = block_weights(gpt2)  # transposed views
    assert len(found) == 8
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    changed = {name for name, value in named(gpt2).items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.endswith(CONV1D)}


@pytest.mark.parametrize("where", ["all", "mlp_down", "lora:2"])
def test_weights_that_are_stored_the_other_way_round_are_learned(gpt2: LanguageModel, where: str) -> None:
    down = gpt2.model.transformer.h[1].mlp.c_proj.weight  # [128, 32]
    before = named(gpt2)
    weights = trained_weights(gpt2, where, None if where == "lora:2" else {down: random(128, 128, seed=7)})
    (change,) = (weight.change for weight in weights if weight.parameter is down)
    assert type(change) is Transposed
    shapes = [tuple(value.shape) for value in change.values]
    assert shapes == ([(32, 2), (2, 128)] if where == "lora:2" else [(32, 128)])
    optimizer = AnchoredAdamW(weights, 1e-4, 0.0)
    losses = []
    for _ in range(8):
        loss = -gpt2.model(torch.tensor([[5, 6, 7, 8]])).logits.float().log_softmax(-1)[..., 3].mean()
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    changed = {name for name, value in named(gpt2).items() if not torch.equal(value, before[name])}
    ends = {"all": "", "mlp_down": "mlp.c_proj.weight", "lora:2": CONV1D}[where]
    assert changed == {name for name in before if name.endswith(ends)}
    if where == "lora:2":
        ranks = {int(torch.linalg.matrix_rank(named(gpt2)[name] - before[name], rtol=1e-3)) for name in changed}
        assert max(ranks) == 2


class Odd(nn.Module):
    """A linear layer that nobody knows for one."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.linear(states, self.weight)


def test_what_needs_linear_layers_is_refused_where_blocks_have_none(fresh_model: LanguageModel) -> None:
    for block in fresh_model.model.model.layers:
        for part in (block.self_attn, block.mlp):
            for name, child in list(part.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(part, name, Odd(child.weight))
    own = re.escape(fresh_model.name)
    with pytest.raises(InvalidArgumentError, match=f"^rounded: {own} has no linear layer in its blocks. Set it to 0.$"):
        trained_weights(fresh_model, seen_rounded=True)
    found = whitening(fresh_model, [Inputs([[5, 6, 7]])], 0.1)
    with pytest.raises(InvalidArgumentError, match=f"^whitening: {own} has no linear layer in its blocks. Set it to"):
        trained_weights(fresh_model, "blocks", found)
    with pytest.raises(InvalidArgumentError, match=f"^write_to lora:2: {own} has no such weights"):
        trained_weights(fresh_model, "lora:2")
    assert len(trained_weights(fresh_model)) == len(list(fresh_model.model.parameters()))


def test_the_blocks_are_the_layers(tmp_path: Path) -> None:
    model = load(write_tiny_model(tmp_path / "model"), device="cpu")
    assert list(blocks_of(model)) == list(model.model.model.layers)
    model.model.model.layers = nn.Identity()
    with pytest.raises(InvalidArgumentError, match="has no list of blocks: write to all"):
        blocks_of(model)
