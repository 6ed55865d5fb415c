"""How much memory an embedding is said to need, against what its tensors take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import write_tiny_model

from oml_fast.embed import MemoryNeed, Recipe, memory_need
from oml_fast.embed.data import Example
from oml_fast.embed.objective import response_loss, text_kl
from oml_fast.embed.optimizer import AnchoredAdamW
from oml_fast.errors import InvalidArgumentError
from oml_fast.measure import BaseView
from oml_fast.models import load

COUNT, LENGTH = 64, 16


def some_examples() -> list[Example]:
    rows = torch.randint(3, 1500, (COUNT, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    return [Example(number, tuple(row), (5,)) for number, row in enumerate(rows)]


def state_bytes(optimizer: AnchoredAdamW) -> int:
    """Weights, base, gradients, masters with theirs, and moments: what lives through a step."""
    weights, masters = optimizer._parameters, optimizer._masters
    own = [t for p in weights for t in (p, p.grad)] + optimizer._base
    own += [t for p, master in zip(weights, masters, strict=True) if p is not master for t in (master, master)]
    own += [t for state in optimizer._adamw.state.values() for t in (state["exp_avg"], state["exp_avg_sq"])]
    return sum(t.nbytes for t in own if t is not None)


class _Saved:
    """Adds up the bytes that autograd keeps for the backward pass, each storage once, weights not counted."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._sizes: dict[int, int] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._weights:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def total(self) -> int:
        return sum(self._sizes.values())


@pytest.mark.parametrize("pull", [0.0, 0.75])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_estimate_is_right_to_within_a_factor_of_two(tmp_path: Path, dtype: torch.dtype, pull: float) -> None:
    folder = write_tiny_model(tmp_path / "model", dtype=dtype)
    model = load(folder, device="cpu")
    batch = some_examples()
    texts = [[*example.ids, *example.ids] for example in batch[: COUNT // 4]]
    base = BaseView(model, texts)
    optimizer = AnchoredAdamW(model.model.parameters(), 1e-3, pull)
    kept = []
    for loss in (
        lambda: response_loss(model, batch)[0].mean(),
        lambda: text_kl(model, texts, base.log_probs(range(len(texts)))),
    ):
        saved = _Saved(model.model)
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            result = loss()
        kept.append(saved.total())
        result.backward()
    before = [p.grad for p in optimizer._parameters]
    optimizer.step()
    for parameter, gradient in zip(optimizer._parameters, before, strict=True):
        parameter.grad = gradient
    need = memory_need(folder, Recipe(pull=pull), COUNT, LENGTH + 1, "cpu")
    assert need.weights + need.optimizer == pytest.approx(state_bytes(optimizer), rel=0.01)
    assert sum(kept) / 2 <= need.activations <= 2 * sum(kept)


def test_it_grows_with_the_work(tiny_folder: Path) -> None:
    small = memory_need(tiny_folder, Recipe(), 8, 10, "cpu")
    assert small.total < memory_need(tiny_folder, Recipe(), 64, 10, "cpu").total
    assert small.total < memory_need(tiny_folder, Recipe(), 8, 100, "cpu").total
    assert small.total < memory_need(tiny_folder, replace(Recipe(), text_length=64), 8, 10, "cpu").total
    assert memory_need(tiny_folder, Recipe(), 10**6, 16, "cpu").activations < 2**31


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
        "embedding needs about 4.5 GiB of 8.0 GiB available (3.0 GiB weights, base and gradients, "
        "1.0 GiB masters and moments, 0.5 GiB activations and logits)"
    )


@pytest.mark.real_model
def test_the_bundled_models_estimate(bundled_folder: Path) -> None:
    need = memory_need(bundled_folder, Recipe(), 64, 17, "cpu")
    assert need.weights + need.optimizer == 22 * 134_515_008
    assert 3 * 2**30 < need.total < 7 * 2**30
