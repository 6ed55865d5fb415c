"""What a step is said to hold and to compute, against the step itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import accumulate
from typing import Any

import pytest
import torch
import transformers

from oml_fast.embed import PRESETS, Recipe
from oml_fast.embed.workload import Keys, workload
from oml_fast.errors import InvalidArgumentError
from oml_fast.models import skeleton
from oml_fast.plan.dry_run import ACTIVATIONS_OF, Cost, at_depth, dry_run
from oml_fast.plan.step import Step

KEYS = Keys(count=64, length=16)
RECIPE = Recipe(text_share=0.0)
TILE = 2 * 12 * 2**19  # bytes of the buffers inside the fused losses, of two heads, which plan.memory adds


def configuration(layers: int = 4, **changed: Any) -> Any:
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaConfig(
        **sizes, **{"vocab_size": 1500, "num_hidden_layers": layers, "dtype": "bfloat16", **changed}
    )


def cost(recipe: Recipe = RECIPE, keys: Keys = KEYS, config: Any = None, **how: Any) -> Cost:
    return dry_run(config or configuration(), recipe, workload(recipe, keys), **how)


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most that was allocated at once, beyond what was there."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    found = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    events = sorted((e.start_ns(), e.nbytes()) for e in found if e.name() == "[memory]")
    return max(accumulate(size for _, size in events))


def step_of(recipe: Recipe, keys: Keys, config: Any, *, recompute: bool = False) -> Step:
    torch.manual_seed(0)
    return Step(skeleton(config), recipe, workload(recipe, keys), recompute=recompute)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("recipe", "keys"),
    [
        (RECIPE, KEYS),
        (replace(RECIPE, objective="minimum_kl"), replace(KEYS, responses=4)),
        (RECIPE, replace(KEYS, response_length=3)),
        (replace(RECIPE, near_keys=4), KEYS),
        (replace(RECIPE, text_share=1.0), KEYS),
        (replace(RECIPE, text_share=0.5, tuned=0.5), KEYS),
        (replace(PRESETS["robust"], whitening=0.0), replace(KEYS, responses=4)),
    ],
    ids=["keys", "minimum KL", "long responses", "near keys", "text", "tuning", "robust"],
)
def test_activations_are_those_of_the_passes(recipe: Recipe, keys: Keys, dtype: str, recompute: bool) -> None:
    config = configuration(dtype=dtype)
    passes = step_of(recipe, keys, config, recompute=recompute).passes()
    found = max(peak_bytes(compute) for _, _, compute in passes)
    said = cost(recipe, keys, config, recompute=recompute).activations
    assert 0.85 * (found - TILE) <= said <= 1.15 * found


@pytest.mark.parametrize(
    ("where", "states"),
    [(where, states) for where in ("all", "blocks", "mlp_down", "last:2") for states in ("float32", "bfloat16")]
    + [("lora:4", "float32")],
)
def test_what_lives_through_training_is_what_the_step_keeps(where: str, states: str) -> None:
    recipe = replace(RECIPE, write_to=where, states=states)
    step, found = step_of(recipe, KEYS, configuration()), cost(recipe)
    kept = {tensor.data_ptr(): tensor.nbytes for tensor in step.tensors}
    assert found.weights + found.base + found.gradients + found.states == sum(kept.values())


def test_whitening_has_a_matrix_for_each_distinct_input_of_what_is_written() -> None:
    # Of each block: attention's and the MLP's inputs [64, 64], the output's [64, 64], and the MLP's end [160, 160].
    whole = cost(replace(RECIPE, whitening=0.1))
    assert whole.whitening == 4 * 2 * (3 * 64**2 + 160**2)
    assert whole.cubes == 4 * (3 * 64**3 + 160**3)
    assert whole.measuring > 2 * whole.whitening  # in float32
    down = cost(replace(RECIPE, whitening=0.1, write_to="mlp_down"))
    assert down.whitening == 4 * 2 * 160**2
    assert cost().whitening == cost().measuring == cost().cubes == 0


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "recipe", [replace(PRESETS["harmless"], write_to=where) for where in ("all", "last:2", "mlp_down")]
)
def test_all_of_it_is_linear_in_the_number_of_blocks(recipe: Recipe, recompute: bool) -> None:
    recipe, config = recipe.for_hidden_size(64), configuration(9)
    whole = at_depth(config, 9, recipe, workload(recipe, KEYS), 1, recompute)
    found = asdict(cost(recipe, config=config, recompute=recompute))
    most = max(size for name, size in whole.items() if name.startswith(ACTIVATIONS_OF))
    assert found["activations"] == pytest.approx(most, rel=0.02)
    for name in found.keys() & whole.keys():
        # A block's matrices are let go while the next one's are made.
        assert found[name] == pytest.approx(whole[name], rel=0.1 if name == "measuring" else 1e-9), name


def test_blocks_that_are_not_alike_are_counted_as_they_are() -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 300}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "kv_lora_rank": 8}
    config = transformers.DeepseekV3Config(
        **{**sizes, **experts, "q_lora_rank": 8, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16},
        intermediate_size=64,
        moe_intermediate_size=48,
        num_hidden_layers=5,
        first_k_dense_replace=2,
        dtype="bfloat16",
    )
    whole = sum(parameter.nbytes for parameter in skeleton(config, device="meta").model.parameters())
    found = cost(config=config)
    assert found.weights == found.base == found.gradients == whole
    assert found.states == 6 * whole


@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, write_to="last:2")])
def test_kinds_of_blocks_are_repeated_where_more_are_looked_at_than_there_are(recipe: Recipe) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 300}
    config = transformers.Qwen2Config(**sizes, intermediate_size=64, num_hidden_layers=2, dtype="bfloat16")
    assert cost(recipe, config=config).weights == sum(
        parameter.nbytes for parameter in skeleton(config, device="meta").model.parameters()
    )


def test_recomputing_takes_a_third_more_operations_and_keeps_a_fraction() -> None:
    config = configuration(12, vocab_size=64)
    kept, again = (cost(config=config, recompute=recompute) for recompute in (False, True))
    assert again.activations < kept.activations / 3
    assert 1.25 < again.flops / kept.flops < 1.36


def test_operations_are_those_of_the_matrix_products() -> None:
    """6 for each weight of the blocks and token id, 4 for each logit and hidden unit, and what attention takes."""
    recipe = replace(RECIPE, batch_size=64)
    config = configuration()
    blocks = 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160)
    tokens, attention = 64 * 16, 4 * 3 * 2 * 2 * 64 * 16 * 16 * 64
    head = 2 * 4 * 64 * 64 * 1500
    assert cost(recipe, config=config).flops == pytest.approx(6 * tokens * blocks + attention + head, rel=0.02)


def test_processes_share_the_sequences() -> None:
    alone, shared = cost(), cost(processes=4)
    assert shared.flops == pytest.approx(alone.flops / 4)
    assert shared.activations < alone.activations
    assert shared.states == alone.states


def test_views_and_whitening_make_the_update_larger() -> None:
    assert cost().update_flops == 0
    assert cost(replace(RECIPE, whitening=0.1)).update_flops > 0
    assert cost(replace(RECIPE, scaled=0.5)).update_bytes > cost().update_bytes


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="has 1 blocks"):
        cost(replace(RECIPE, write_to="last:2"), config=configuration(1))
    with pytest.raises(InvalidArgumentError, match="states bfloat16"):
        cost(replace(RECIPE, states="bfloat16"), config=configuration(dtype="float32"))
