"""How much memory an embedding is said to need, against what its tensors take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from tiny import write_tiny_model

from oml_fast.embed import MemoryNeed, Recipe, memory_need
from oml_fast.embed.data import Example
from oml_fast.embed.objective import CrossEntropy, MinimumKL, response_loss, stay_kl, text_kl
from oml_fast.embed.optimizer import AnchoredAdamW
from oml_fast.embed.tuning import tuning_shift
from oml_fast.embed.weights import TrainedWeight, trained_weights
from oml_fast.embed.whitening import Inputs, whitening
from oml_fast.errors import InvalidArgumentError
from oml_fast.measure import BaseView
from oml_fast.models import LanguageModel, load

COUNT, LENGTH = 64, 16
RECIPE = Recipe(text_share=0.0)


def some_examples() -> list[Example]:
    rows = torch.randint(3, 1500, (COUNT, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    return [Example(number, tuple(row), (5,)) for number, row in enumerate(rows)]


def states(model: LanguageModel, weights: list[TrainedWeight]) -> int:
    """Bytes that live through a step: weights, two heads, base, changes, gradients, moments and whitening."""
    optimizer = AnchoredAdamW(weights, 1e-3, 0.5)
    own = [*model.model.parameters(), model.head()[0], model.head()[0]]
    for weight in weights:
        parameter = weight.parameter
        parameter.grad = torch.ones_like(parameter)
        own += [weight.base(), parameter.grad]
    own += optimizer.tensors().values()
    shared = {id(w.change._whitening): w.change._whitening for w in weights if hasattr(w.change, "_whitening")}
    return sum(tensor.nbytes for tensor in [*own, *shared.values()])


@pytest.mark.parametrize("where", ["all", "blocks", "mlp_down", "last:1", "lora:4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_states_are_those_of_the_weights_that_are_trained(tmp_path: Path, dtype: torch.dtype, where: str) -> None:
    folder = write_tiny_model(tmp_path / "model", dtype=dtype)
    model = load(folder, device="cpu")
    need = memory_need(folder, replace(RECIPE, write_to=where), COUNT, LENGTH + 1, "cpu")
    assert need.weights + need.optimizer == pytest.approx(states(model, trained_weights(model, where)), rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whitening_has_a_matrix_for_each_distinct_input(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = write_tiny_model(tmp_path / "model", dtype=dtype)
    model = load(folder, device="cpu")
    found = whitening(model, [Inputs([example.ids for example in some_examples()])], 0.1)
    recipe = replace(RECIPE, whitening=0.1)
    need = memory_need(folder, recipe, COUNT, LENGTH + 1, "cpu")
    assert need.weights + need.optimizer == pytest.approx(states(model, trained_weights(model, "all", found)), rel=0.01)
    entries = sum(p.numel() for p in {id(p): p for p in found.values()}.values())
    few = memory_need(folder, replace(recipe, write_to="lora:1", whitening=0.0), COUNT, LENGTH + 1, "cpu").optimizer
    down = memory_need(folder, replace(recipe, write_to="last:1"), COUNT, LENGTH + 1, "cpu").optimizer
    assert few < entries * (4 + dtype.itemsize) <= down


def test_tuning_has_a_shift_for_each_weight_that_is_trained(tiny_folder: Path) -> None:
    model = load(tiny_folder, device="cpu")
    for where in ("all", "last:1"):
        weights = trained_weights(model, where)
        shift = tuning_shift(model, [[5, 6, 7]], 1e-3)
        assert len(shift) == len(weights)
        without, tuned = (
            memory_need(tiny_folder, Recipe(write_to=where, tuned=share), COUNT, LENGTH, "cpu").optimizer
            for share in (0.0, 0.1)
        )
        assert tuned - without == sum(tensor.nbytes for tensor in shift.values())


def peak_bytes(work: Callable[[], torch.Tensor]) -> int:
    """The most that was allocated at once in a forward and backward pass, beyond what was there and is left."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work().sum().backward()
    found = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    events = sorted((e.start_ns(), e.nbytes()) for e in found if e.name() == "[memory]")
    held = list(accumulate(size for _, size in events))
    return max(held) - max(held[-1], 0)


def answers(model: LanguageModel) -> torch.Tensor:
    return response_loss(model, some_examples(), CrossEntropy())[0]


def raised_answers(model: LanguageModel) -> torch.Tensor:
    items = some_examples()
    view = BaseView(model, [item.sequence for item in items], [item.start for item in items])
    return response_loss(model, items, MinimumKL(), view.states(range(COUNT)))[0]


def near_keys(model: LanguageModel) -> torch.Tensor:
    items = some_examples()
    view = BaseView(model, [item.sequence for item in items], [item.start for item in items])
    return stay_kl(model, view.sequences, view.states(range(COUNT)))[0]


def texts(model: LanguageModel) -> torch.Tensor:
    sequences = [example.ids for example in some_examples()]
    return text_kl(model, sequences, BaseView(model, sequences).states(range(COUNT)))


@pytest.mark.parametrize(
    ("recipe", "count", "kept"),
    [
        (RECIPE, COUNT, answers),
        (replace(RECIPE, objective="minimum_kl"), COUNT, raised_answers),
        (replace(RECIPE, batch_size=COUNT // 16, near_keys=16), COUNT, near_keys),
        (replace(RECIPE, batch_size=COUNT, text_share=1.0, text_length=LENGTH), COUNT, texts),
    ],
    ids=["cross-entropy", "minimum KL", "near keys", "text"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_activations_are_right_to_within_a_factor_of_two(
    tmp_path: Path, dtype: torch.dtype, recipe: Recipe, count: int, kept: Callable[[LanguageModel], torch.Tensor]
) -> None:
    folder = write_tiny_model(tmp_path / "model", dtype=dtype)
    model = load(folder, device="cpu")
    peak = peak_bytes(lambda: kept(model))
    need = memory_need(folder, recipe, count, LENGTH, "cpu")
    assert peak / 2 <= need.activations <= 2 * peak


def test_it_grows_with_the_work(tiny_folder: Path) -> None:
    def need(count: int = 8, longest: int = 10, **changed: object) -> MemoryNeed:
        return memory_need(tiny_folder, replace(Recipe(), **changed), count, longest, "cpu")  # type: ignore[arg-type]

    small = need()
    assert small.total < need(64).total
    assert small.total < need(longest=100).total
    assert small.total < need(text_length=64).total
    assert need(64, text_share=0.0).total < need(64, near_keys=4).total
    assert need(64, text_share=0.0).total < need(64, text_share=0.0, templates=1.0).total
    assert need(64, text_share=0.0).total < need(64, text_share=0.0, objective="minimum_kl").total
    assert small.total < need(tuned=0.1).total
    assert small.total < need(whitening=0.1).total
    assert need(10**6, 16).activations < 2**31


def test_what_is_not_trained_with_costs_nothing(tiny_folder: Path) -> None:
    plain = memory_need(tiny_folder, RECIPE, 64, 10, "cpu")
    for changed in ({"text_share": 4.0, "text_weight": 0.0}, {"near_keys": 16, "near_weight": 0.0}):
        recipe = replace(RECIPE, **changed)  # type: ignore[arg-type]
        assert memory_need(tiny_folder, recipe, 64, 10, "cpu").total == plain.total


def test_what_is_available_is_what_the_machine_has(tiny_folder: Path) -> None:
    available = memory_need(tiny_folder, Recipe(), 8, 10, "cpu").available
    assert 2**26 < available < 2**46


def test_what_fits_is_let_through() -> None:
    MemoryNeed(weights=5, optimizer=3, activations=2, available=10).require_fit()


def test_what_cannot_fit_is_refused(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(memory_need.__globals__, "_available", lambda device: 2**20)
    need = memory_need(tiny_folder, Recipe(), 64, 17, "cpu")
    with pytest.raises(InvalidArgumentError) as refused:
        need.require_fit()
    message = str(refused.value)
    assert message.startswith("embedding needs about 0.0 GiB of 0.0 GiB available (")
    assert message.endswith("use a machine with more memory, or a smaller model.")
    assert "\n" not in message


def test_the_estimate_names_its_parts() -> None:
    need = MemoryNeed(weights=3 * 2**30, optimizer=2**30, activations=2**29, available=8 * 2**30)
    assert str(need) == (
        "embedding needs about 4.5 GiB of 8.0 GiB available (3.0 GiB weights and base, "
        "1.0 GiB changes, gradients and moments, 0.5 GiB activations and logits)"
    )


@pytest.mark.real_model
def test_the_bundled_models_estimate(bundled_folder: Path) -> None:
    """bf16: 2 bytes a weight, its base and its gradient, 12 of float32 states; two copies of the head, [49152, 576]."""
    need = memory_need(bundled_folder, Recipe(), 64, 17, "cpu")
    assert need.weights + need.optimizer == 18 * 134_515_008 + 2 * 2 * 49_152 * 576
    assert 2.5 * 2**30 < need.total < 7 * 2**30


def test_less_is_needed_where_less_is_kept(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    whole, size = memory_need(folder, RECIPE, COUNT, LENGTH, "cpu"), weight_bytes(folder)
    compact = memory_need(folder, replace(RECIPE, states="bfloat16"), COUNT, LENGTH, "cpu")
    assert whole.optimizer - compact.optimizer == 4 * size  # 8 bytes for each parameter of 2
    assert whole.weights - memory_need(folder, RECIPE, COUNT, LENGTH, "cpu", "file").weights == size
    assert whole == replace(memory_need(folder, RECIPE, COUNT, LENGTH, "cpu", "host"), available=whole.available)


def weight_bytes(folder: Path) -> int:
    return sum(parameter.nbytes for parameter in load(folder, device="cpu").model.parameters())
