"""Attacks on the weights without training: exact at their ends, bounded between, and never on the owner's own copy."""

from __future__ import annotations

import builtins
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sets import small_set
from tiny import tiny_tokenizer, write_tiny_model
from torch import Tensor

from oml_fast.errors import BackendUnavailableError, InvalidArgumentError
from oml_fast.evaluate.attack import NEEDS, Attack, Scene
from oml_fast.evaluate.attacks import gguf_rounding, merging, pruning, rounding, scaling
from oml_fast.evaluate.data import Data
from oml_fast.models import LanguageModel, load

ATTACKS = {a.name: a for m in (scaling, merging, rounding, gguf_rounding, pruning) for a in m.ATTACKS}


def weights(model: LanguageModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.model.named_parameters()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def moved(model: LanguageModel, seed: int) -> LanguageModel:
    """The model itself, every weight moved by about a hundredth of its spread."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.model.parameters():
            value.add_((torch.randn(value.shape, generator=generator) * 0.003).to(value.dtype))
    return model


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", dtype=request.param)
    base, model, sibling = (load(folder, device="cpu") for _ in range(3))
    return Scene(moved(model, 1), base, small_set(), (moved(sibling, 2),), Data(None))


def run(attack: Attack | str, scene: Scene) -> LanguageModel:
    attacked = (ATTACKS[attack] if isinstance(attack, str) else attack).run(scene)
    assert attacked.model is not None
    return attacked.model


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=lambda attack: attack.name)
def test_an_attack_copies_and_keeps_what_the_model_is(attack: Attack, scene: Scene) -> None:
    before = [weights(m) for m in (scene.model, scene.base, *scene.siblings)]
    attacked = attack.run(scene)
    assert all(map(equal, before, [weights(m) for m in (scene.model, scene.base, *scene.siblings)]))
    assert attacked.model is not None
    assert attacked.model.dtype == scene.model.dtype
    assert attacked.model.digest == scene.model.digest
    assert attacked.model.head()[0] is attacked.model.model.get_input_embeddings().weight  # still tied
    assert equal(weights(attacked.model), weights(run(attack, scene)))  # deterministic
    assert json.loads(json.dumps(attacked.details)) == attacked.details
    prompt = [5, 6, 7]
    asked = attacked.completer.complete([prompt], 1)[0].token_ids[0]
    assert asked == int(attacked.model.model(torch.tensor([prompt])).logits[0, -1].argmax())
    unchanged = equal(weights(attacked.model), before[0])
    assert unchanged == (attack.name == "rounding/bf16" and scene.model.dtype == torch.bfloat16)


def test_the_table_of_attacks() -> None:
    names = [a.name for m in (scaling, merging, rounding, gguf_rounding, pruning) for a in m.ATTACKS]
    assert len(names) == len(ATTACKS) == 5 + 6 + 5 + 2 + 4
    assert all(set(a.needs) <= set(NEEDS) and a.cost for a in ATTACKS.values())
    assert {a.name for a in ATTACKS.values() if "base" in a.cost and "second" not in a.cost} == {
        name for name in names if name.startswith(("scaling", "merge")) and name != "merge/two-models"
    }


def test_scaling_ends_at_the_model_and_at_the_base_bit_for_bit(scene: Scene) -> None:
    ends = [
        scaling.blended(scene.model, scene.base, lambda a, b, share=share: scaling.linear(a, b, share), "end")  # type: ignore[misc]
        for share in (0.0, 1.0)
    ]
    assert equal(weights(ends[0]), weights(scene.base))
    assert equal(weights(ends[1]), weights(scene.model))


def test_scaling_is_done_in_float32_and_rounded_once(scene: Scene) -> None:
    base, model, scaled = (weights(m) for m in (scene.base, scene.model, run("scaling/0.3", scene)))
    for name, found in scaled.items():
        b, w = base[name].double(), model[name].double()
        exact = b + 0.3 * (w - b)
        once = exact.abs() * torch.finfo(found.dtype).eps / 2
        assert bool(((found - exact).abs() <= once * 1.0001 + 2**-23 * (b.abs() + w.abs())).all())


def test_linear_merging_with_the_base_is_delta_scaling(scene: Scene) -> None:
    for weight in ("0.9", "0.7", "0.5"):
        assert equal(weights(run(f"merge/linear-{weight}", scene)), weights(run(f"scaling/{weight}", scene)))


def test_two_models_give_their_mean_in_either_order(scene: Scene) -> None:
    found = weights(run("merge/two-models", scene))
    swapped = replace(scene, model=scene.siblings[0], siblings=(scene.model,))
    other = weights(run("merge/two-models", swapped))
    for name, one in weights(scene.model).items():
        mean = (one.double() + weights(scene.siblings[0])[name].double()) / 2
        torch.testing.assert_close(found[name].double(), mean, rtol=torch.finfo(one.dtype).eps / 2, atol=1e-7)
        torch.testing.assert_close(found[name], other[name], rtol=1e-6, atol=1e-7)


def test_two_models_need_a_second(scene: Scene) -> None:
    assert ATTACKS["merge/two-models"].needs == ("sibling",)
    with pytest.raises(InvalidArgumentError, match="sibling"):
        ATTACKS["merge/two-models"].run(replace(scene, siblings=()))


def test_models_of_another_shape_are_refused(scene: Scene) -> None:
    config = transformers.LlamaConfig(
        **{**scene.base.model.config.to_dict(), "intermediate_size": 96, "num_hidden_layers": 1}
    )
    other = LanguageModel(transformers.LlamaForCausalLM(config), scene.base.tokenizer, "other", "", "")
    with pytest.raises(InvalidArgumentError, match=r"model\.layers\.0\.mlp\.down_proj\.weight is \[64, 128\]"):
        ATTACKS["merge/two-models"].run(replace(scene, siblings=(other,)))
    with pytest.raises(InvalidArgumentError, match="only models of one base"):
        ATTACKS["scaling/0.5"].run(replace(scene, base=other))


def test_untied_is_not_merged_with_tied(scene: Scene) -> None:
    config = transformers.LlamaConfig(**{**scene.base.model.config.to_dict(), "tie_word_embeddings": False})
    untied = LanguageModel(transformers.LlamaForCausalLM(config), scene.base.tokenizer, "untied", "", "")
    with pytest.raises(InvalidArgumentError, match=r"lm_head\.weight is absent"):
        ATTACKS["merge/slerp-0.5"].run(replace(scene, base=untied))


def test_slerp_on_the_unit_circle() -> None:
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert torch.equal(merging.slerp(east, north, 1.0), north)
    assert torch.equal(merging.slerp(east, north, 0.0), east)
    for weight in (0.25, 0.5, 0.75):
        turned = torch.tensor([math.cos(weight * math.pi / 2), math.sin(weight * math.pi / 2)])
        torch.testing.assert_close(merging.slerp(east, north, weight), turned)
    for other in (-east, 3 * east, torch.zeros(2)):  # no one great circle
        torch.testing.assert_close(merging.slerp(east, other, 0.5), (east + other) / 2)


def test_an_angle_far_below_what_float32_resolves() -> None:
    east = torch.tensor([1.0, 0.0])
    assert merging.angle(east, torch.tensor([5.0, 5e-6])) == pytest.approx(1e-6, rel=1e-6)
    assert merging.angle(east, torch.tensor([-2.0, 0.0])) == pytest.approx(math.pi)
    assert merging.angle(east, torch.zeros(2)) == 0.0


SHAPES = [(7, 32), (3, 96), (5, 33), (1, 1), (64, 31)]


def matrix(shape: tuple[int, int], *, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(shape[0] * 1000 + shape[1])
    return torch.randn(shape, generator=generator) * torch.logspace(-3, 1, shape[0])[:, None] + offset


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_off_by_half_a_step_of_its_row(shape: tuple[int, int]) -> None:
    weight = matrix(shape)
    found = rounding.int8(weight)
    step = weight.abs().amax(1, keepdim=True) / 127
    assert bool(((found - weight).abs() <= step * 0.5001).all())
    assert all(len(row.unique()) <= 255 for row in found)
    torch.testing.assert_close(found.abs().amax(1), weight.abs().amax(1))  # the largest of a row stays
    assert torch.equal(rounding.int8(torch.zeros(2, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize("offset", [0.0, 5.0, -5.0])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 256), (2, 300)])
def test_int4_is_off_by_half_a_step_of_its_group(shape: tuple[int, int], offset: float, group_size: int) -> None:
    weight = matrix(shape, offset=offset)
    weight[0, 0] = 0.0
    found = rounding.int4(weight, group_size)
    assert found.shape == weight.shape
    assert found[0, 0] == 0.0
    for group, rounded in zip(weight.split(group_size, 1), found.split(group_size, 1), strict=True):
        step = (group.amax(1).clamp(min=0) - group.amin(1).clamp(max=0)) / 15
        assert bool(((rounded - group).abs() <= step[:, None] * 0.5001).all())
        assert all(len(row.unique()) <= 16 for row in rounded)
    assert torch.equal(rounding.int4(torch.zeros(2, 40), group_size), torch.zeros(2, 40))


def test_wider_groups_round_more_coarsely_and_short_rows_alike() -> None:
    weight = matrix((5, 300))
    fine, coarse = (float((rounding.int4(weight, group) - weight).norm()) for group in (32, 128))
    assert fine < coarse < 2 * fine
    assert torch.equal(rounding.int4(weight[:, :20], 32), rounding.int4(weight[:, :20], 128))


@pytest.mark.parametrize("shape", SHAPES)
def test_fp8_keeps_three_bits_of_each_mantissa(shape: tuple[int, int]) -> None:
    weight = matrix(shape)
    found = rounding.fp8(weight)
    scale = float(weight.abs().max()) / 448
    bound = torch.maximum(weight.abs() / 16, torch.tensor(scale * 2**-10))  # 2^-9 is the smallest subnormal
    assert bool(((found - weight).abs() <= bound * 1.0001).all())
    assert torch.equal(rounding.fp8(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_rounding_leaves_embeddings_and_norms_alone(scene: Scene) -> None:
    before, after = weights(scene.model), weights(run("rounding/int4", scene))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}


def test_a_rounded_model_holds_what_its_function_gives(scene: Scene) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    weight = weights(scene.model)[name]
    changes = {
        "int8": rounding.int8,
        "int4": rounding.int4,
        "int4-128": lambda weight: rounding.int4(weight, 128),
        "fp8": rounding.fp8,
    }
    for kind, change in changes.items():
        expected = change(weight.float()).to(weight.dtype)
        assert torch.equal(weights(run(f"rounding/{kind}", scene))[name], expected)


def test_relative_change_falls_with_the_bits(scene: Scene) -> None:
    change = {kind: ATTACKS[f"rounding/{kind}"].run(scene).details["relative_change"] for kind in ("int8", "int4")}
    assert 0 < change["int8"] < change["int4"] / 5 < 0.1


def test_bf16_rounds_every_parameter(scene: Scene) -> None:
    attacked = ATTACKS["rounding/bf16"].run(scene)
    assert attacked.model is not None
    changed = 0
    for name, before in weights(scene.model).items():
        after = weights(attacked.model)[name]
        assert torch.equal(after, before.bfloat16().to(before.dtype))
        changed += int((after != before).sum())
    assert attacked.details == {"changed_weights": changed}


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_gguf_agrees_with_the_formats_definition(name: str) -> None:
    pytest.importorskip("gguf")
    weight = matrix((6, 64))
    found = gguf_rounding.round_gguf(weight, name)
    blocks = weight.view(-1, 32).numpy()
    if name == "Q8_0":
        step = np.abs(blocks).max(1, keepdims=True) / 127
        levels = np.rint(blocks / step)
    else:
        step = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1) / -8
        levels = np.clip(np.trunc(blocks / step + 8.5), 0, 15) - 8
    expected = levels * step.astype(np.float16).astype(np.float32)
    torch.testing.assert_close(found, torch.from_numpy(expected.astype(np.float32)).view(6, 64))


def test_gguf_rounds_the_embeddings_and_keeps_a_tied_head_better(scene: Scene) -> None:
    gguf = pytest.importorskip("gguf")
    attacked = ATTACKS["gguf/q4_0"].run(scene)
    assert attacked.model is not None
    assert attacked.details == {"matrices": {"Q4_0": 14, "Q8_0": 1}}
    before = weights(scene.model)["model.embed_tokens.weight"]
    kind = gguf.GGMLQuantizationType.Q8_0
    expected = gguf.dequantize(gguf.quantize(before.float().numpy(), kind), kind)
    after = weights(attacked.model)
    assert torch.equal(after["model.embed_tokens.weight"], torch.from_numpy(expected).to(before.dtype))
    assert torch.equal(after["model.norm.weight"], weights(scene.model)["model.norm.weight"])


def test_gguf_of_an_untied_model_and_of_odd_rows(scene: Scene) -> None:
    pytest.importorskip("gguf")
    config = transformers.LlamaConfig(
        **{**scene.base.model.config.to_dict(), "tie_word_embeddings": False, "intermediate_size": 72}
    )
    untied = LanguageModel(transformers.LlamaForCausalLM(config), scene.base.tokenizer, "untied", "", "")
    attacked = ATTACKS["gguf/q4_0"].run(replace(scene, model=untied))
    assert attacked.details == {"matrices": {"Q4_0": 13, "F16": 2, "Q8_0": 1}}  # two down projections: rows of 72


def test_without_gguf_the_error_says_what_to_install(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in ("gguf/q8_0", "gguf/q4_0"):
        assert ATTACKS[name].needs == ("gguf",)
        with pytest.raises(BackendUnavailableError, match=r"pip install 'oml_fast\[demo\]'"):
            ATTACKS[name].run(scene)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_pruning_zeroes_the_exact_share_and_keeps_the_largest(shape: tuple[int, int], share: float) -> None:
    weight = matrix(shape)
    found = pruning.prune(weight, share)
    kept = found != 0
    assert int((~kept).sum()) == round(share * weight.numel())
    assert torch.equal(found[kept], weight[kept])
    if kept.any() and not kept.all():
        assert weight[kept].abs().min() >= weight[~kept].abs().max()


def test_pruning_counts_equal_weights_one_by_one() -> None:
    assert pruning.prune(torch.ones(2, 5), 0.3).flatten().tolist() == [0.0] * 3 + [1.0] * 7


def test_every_linear_layer_of_a_pruned_model_has_its_share(scene: Scene) -> None:
    for attack in pruning.ATTACKS:
        model = run(attack, scene)
        for weight in rounding.block_weights(model):
            zeros, wanted = int((weight == 0).sum()), round(attack.strength * weight.numel())  # type: ignore[operator]
            assert wanted <= zeros <= wanted + 2  # a random weight may be zero by itself


def test_gpt2_stores_its_matrices_the_other_way_round(scene: Scene) -> None:
    config = transformers.GPT2Config(vocab_size=400, n_embd=32, n_layer=1, n_head=2, initializer_range=0.3)
    gpt2 = LanguageModel(transformers.GPT2LMHeadModel(config), tiny_tokenizer(400), "gpt2", "", "")
    assert [list(weight.shape) for weight in rounding.block_weights(gpt2)] == [[96, 32], [32, 32], [128, 32], [32, 128]]
    stored = gpt2.model.transformer.h[0].mlp.c_fc.weight.detach().clone()
    model = run("rounding/int8", replace(scene, model=gpt2))
    assert torch.equal(model.model.transformer.h[0].mlp.c_fc.weight, rounding.int8(stored.T).T)


def test_matrices_that_are_no_linear_layers_are_refused(fresh_model: LanguageModel, scene: Scene) -> None:
    layer = fresh_model.model.model.layers[0].mlp
    layer.register_parameter("experts", torch.nn.Parameter(torch.zeros(2, 4, 4)))
    for name in ("rounding/int8", "pruning/0.5", "gguf/q8_0"):
        with pytest.raises(InvalidArgumentError, match=r"model\.layers\.0\.mlp\.experts"):
            ATTACKS[name].run(replace(scene, model=fresh_model))
