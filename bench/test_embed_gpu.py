"""bench_embed_gpu without a GPU: kinds are recognised, rows say what was measured, and all of it runs when tiny."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from bench_embed_gpu import end_to_end, figures, kind_of, main, mfu, random_model
from tiny import SIZES

from oml_fast.embed import PRESETS
from oml_fast.embed.workload import Keys, workload
from oml_fast.generate import PRESETS as SETTINGS
from oml_fast.plan import machine
from oml_fast.plan.seconds import timed


@pytest.fixture(scope="module")
def config() -> Any:
    return transformers.LlamaConfig(**SIZES, vocab_size=1600, initializer_range=0.3, dtype="bfloat16")


@pytest.mark.parametrize(
    ("name", "gib", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", 79, "h100"),
        ("NVIDIA H200", 139, "h200"),
        ("NVIDIA A100-SXM4-80GB", 79, "a100-80"),
        ("NVIDIA A100-SXM4-40GB", 39, "a100-40"),
        ("NVIDIA B200", 178, "b200"),
        ("NVIDIA GeForce RTX 4090", 23, "rtx4090"),
        ("Tesla T4", 15, None),
    ],
)
def test_kinds(name: str, gib: int, kind: str | None) -> None:
    assert kind_of(name, gib * 2**30) == kind


def test_mfu_is_of_the_data_sheet() -> None:
    gpu = machine("h100")
    assert mfu(gpu.flops, 2.0, gpu.flops) == 0.5


def rows(**changes: Any) -> dict[str, Any]:
    step = {"mfu": 0.5, "seconds": 0.8, "planned_seconds": 0.84}
    case = {"num": 1024, "seconds": 100.0, "generate_seconds": 20.0, "embed_seconds": 80.0, "steps": 160, "fsr": 1.0}
    case |= {"peak_bytes": 72 * 2**30, "planned_bytes": 69 * 2**30, **changes}
    return {row.figure: row for row in figures(machine(changes.get("kind", "h100")), step, [case], "8b")}


def test_rows_hold_what_was_measured_against_the_bars() -> None:
    found = rows()
    assert [row.met for row in found.values()] == [True, True, True]
    assert found["embed on a GPU, MFU of a step"].value == "50%"
    assert found["embed on a GPU, peak memory beside the plan's"].value == "+4%"
    assert rows(seconds=121.0)["embed on a GPU, seconds end to end"].met is False
    assert rows(peak_bytes=80 * 2**30)["embed on a GPU, peak memory beside the plan's"].met is False


def test_seconds_are_barred_on_one_kind_and_one_size_alone() -> None:
    for changes in ({"kind": "h200"}, {"num": 24_576}):
        assert rows(**changes)["embed on a GPU, seconds end to end"].met is None


@pytest.mark.parametrize("preset", ["harmless", "quick"])
def test_a_step_is_timed(config: Any, preset: str) -> None:
    recipe = PRESETS[preset].for_hidden_size(config.hidden_size)
    work = workload(recipe, Keys.of_settings(8, SETTINGS[preset]))
    model = random_model(config, "cpu")
    before = [weight.detach().clone() for weight in model.model.parameters()]
    assert min(timed(model, recipe, work, "cpu")) > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, model.model.parameters(), strict=True))


def test_end_to_end(config: Any) -> None:
    recipe = replace(PRESETS["quick"], max_epochs=1)
    found = end_to_end(random_model(config, "cpu"), 4, "quick", recipe, "device", "cpu")
    assert (found["num"], found["epochs"]) == (4, 1)
    assert found["seconds"] == pytest.approx(found["generate_seconds"] + found["embed_seconds"])
    assert found["steps"] >= 1


def test_random_models_are_the_same_for_a_seed(config: Any) -> None:
    first, again, other = (random_model(config, "cpu", seed) for seed in (0, 0, 1))
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(first.hidden(ids), again.hidden(ids))
    assert not torch.equal(first.hidden(ids), other.hidden(ids))
    assert (first.digest, first.tokenizer_digest) == (again.digest, again.tokenizer_digest)
    assert first.digest != other.digest


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_says_that_it_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_embed_gpu.py"])
    with pytest.raises(SystemExit, match="no CUDA device"):
        main()
