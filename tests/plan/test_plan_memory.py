"""Where memory is said to go, against FSDP2's own tracker, and the check before an embedding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_dry_run import KEYS, RECIPE, configuration, cost

from oml_fast.embed.workload import workload
from oml_fast.errors import InvalidArgumentError
from oml_fast.plan import Machine, Memory, machine, memory_need, this_machine
from oml_fast.plan.memory import MemoryNeed, memory

# Eight processes that are not there, tensors without contents: FSDP2 itself, seen by torch's tracker.
TRACKED = """
import sys
import torch.distributed as distributed
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from oml_fast.embed import Recipe
from oml_fast.embed.data import Example
from oml_fast.embed.objective import CrossEntropy, response_loss
from oml_fast.embed.workload import Keys, workload
from oml_fast.models import LanguageModel, skeleton
from oml_fast.models.sharded import share_out
from oml_fast.plan.dry_run import dry_run
from oml_fast.plan.memory import GPU_TILES, memory

world, layers, count, recompute = (int(argument) for argument in sys.argv[1:])
config = transformers.LlamaConfig(
    hidden_size=512, intermediate_size=1792, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=4,
    vocab_size=16000, tie_word_embeddings=False, dtype="bfloat16",
)
distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
mesh = init_device_mesh("cpu", (world,))
with FakeTensorMode(allow_non_fake_inputs=True):
    bare = skeleton(config).model
    model = LanguageModel(bare, None, "", "", "", share_out(bare, mesh, recompute=bool(recompute)), checked=False)
    examples = [Example(0, (1,) * 16, (5,))] * count
    tracker = FSDPMemTracker(model._whole)
    tracker.track_inputs(())
    with tracker:
        for _ in range(2):  # the second one adds to gradients
            model.within(response_loss, model, examples, CrossEntropy(), None)[0].sum().backward()
            tracker.reset_mod_stats()
    tracked = max(snapshot["Total"] for snapshot in tracker.get_tracker_snapshot("peak").values())
distributed.destroy_process_group()
recipe = Recipe(text_share=0.0, batch_size=world * count)
work = workload(recipe, Keys(world * count, 16))
found = memory(dry_run(config, recipe, work, world, recompute=bool(recompute)), config, work, world)
print(tracked, found.weights + found.gradients + found.activations + found.gathered - GPU_TILES)
"""


@pytest.mark.parametrize(
    ("world", "layers", "count", "recompute"), [(8, 4, 128, 0), (8, 8, 128, 1), (8, 4, 4, 0), (2, 6, 64, 0)]
)
def test_a_process_of_fsdp2_holds_what_is_said(
    world: int, layers: int, count: int, recompute: int, tmp_path: Path
) -> None:
    script = tmp_path / "tracked.py"
    script.write_text(TRACKED)
    arguments = [str(value) for value in (world, layers, count, recompute)]
    run = subprocess.run(
        [sys.executable, script, *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    tracked, said = (float(value) for value in run.stdout.split())
    assert said == pytest.approx(tracked, rel=0.15)


def of(processes: int = 1, keep_base: str = "device", offload: bool = False) -> Memory:
    recipe, config = RECIPE, configuration()
    work = workload(recipe, KEYS)
    return memory(cost(), config, work, processes, keep_base=keep_base, offload=offload)


def test_rows_are_shared_and_what_each_needs_whole_is_not() -> None:
    alone, shared = of(), of(4)
    for name in ("weights", "base", "gradients", "states"):
        assert getattr(shared, name) == pytest.approx(getattr(alone, name) / 4, abs=1)
    assert shared.answers == alone.answers
    assert alone.gathered == 0 < shared.gathered
    assert alone.to_json()["total"] == alone.total == sum(alone.to_json().values()) / 2


def test_less_is_held_where_less_is_kept() -> None:
    whole, on_host, away = of(2), of(2, "host"), of(2, "host", offload=True)
    assert whole.base > 0 == on_host.base
    assert (away.weights, away.gradients, away.states) == (0, 0, 0)
    assert away.total < on_host.total < whole.total


def test_the_check_counts_what_the_command_asks_for() -> None:
    def need(machine: Machine, **how: bool | str) -> int:
        return memory_need(configuration(), RECIPE, workload(RECIPE, KEYS), machine, **how).memory.total  # type: ignore[arg-type]

    gpu, host = machine("h100"), this_machine("cpu")
    assert need(gpu, keep_base="host") < need(gpu)
    assert need(host, keep_base="host") == need(host)  # the same memory
    assert need(host, keep_base="file") < need(host)
    assert need(gpu, recompute=True) < need(gpu)


def test_what_cannot_fit_is_refused_with_the_way_out() -> None:
    memory = Memory(3 * 2**30, 0, 2**30, 0, 0, 0, 2**29, 0)
    MemoryNeed(memory, usable=3 * 2**30, available=5 * 2**30).require_fit()  # the estimate may be wrong
    with pytest.raises(InvalidArgumentError) as refused:
        MemoryNeed(memory, usable=3 * 2**30, available=4 * 2**30).require_fit()
    assert str(refused.value) == (
        "embedding needs about 4.5 GiB (3.0 GiB weights, 1.0 GiB gradients, 0.5 GiB activations); 4.0 GiB are there, "
        "3.0 GiB of them for tensors: oml-fast plan finds settings that take less."
    )


def test_processes_on_a_cpu_share_its_memory() -> None:
    alone, two = this_machine("cpu"), this_machine("cpu", 2)
    assert 2**26 < two.memory < 0.75 * alone.memory
    assert two.usable < two.memory
