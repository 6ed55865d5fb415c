"""Embedding in an 8B-shaped model of random weights on one GPU: a step's MFU, peak memory, and sets end to end.

`python bench/bench_embed_gpu.py` takes the settings that `oml-fast plan` puts first for this GPU, times a step of the
training's own code at full depth, then makes and embeds 1,024 fingerprints (`--num 1024 24576` for both sizes), and
writes bench/results/embed_gpu.json. MFU is the operations of a step's passes (oml_fast/plan/dry_run.py, nothing counted
twice for recomputing) over its seconds, update included, and the data sheet's rate of bfloat16 products. The weights
mean nothing and the tokenizer is a small one; both cost what real ones do. Without a GPU it exits with 1.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from common import ROOT, SECRET, Figure, at_most, command, finish, parser, start
from devices import described, need_gpu
from tiny import tiny_tokenizer

from oml_fast.embed import PRESETS, Recipe, embed
from oml_fast.embed.workload import Keys, Workload, workload
from oml_fast.generate import PRESETS as SETTINGS
from oml_fast.generate import generate
from oml_fast.models import LanguageModel, read_config, recompute_blocks, skeleton, tokenizer_digest
from oml_fast.plan import machine, plan
from oml_fast.plan.dry_run import dry_run
from oml_fast.plan.machines import KINDS, Machine
from oml_fast.plan.planning import Option
from oml_fast.plan.seconds import timed

MFU_BAR, MEMORY_BAR, SECONDS_BAR = 0.45, 0.10, 120
BARRED_NUM, BARRED_KIND = 1024, "h100"
_NAMES = {"h100": "H100", "h200": "H200", "b200": "B200", "l40s": "L40S", "rtx4090": "RTX 4090"}
_A100_LARGE = 60 * 2**30  # bytes: between those of the two sizes


def kind_of(name: str, size: int) -> str | None:
    """The kind in oml_fast/plan/machines.py of a GPU with this name and so many bytes; None where it is not there."""
    if "A100" in name:
        return "a100-80" if size > _A100_LARGE else "a100-40"
    return next((kind for kind, part in _NAMES.items() if part in name and kind in KINDS), None)


def this_gpu(told: str | None) -> Machine:
    """One GPU of the kind that was told, or that its name says."""
    found = told or kind_of(torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory)
    if found is None:
        raise SystemExit(f"{torch.cuda.get_device_name()} has no data sheet here: say --machine, one of {KINDS}.")
    return machine(found)


def random_model(config: Any, device: str, seed: int = 0) -> LanguageModel:
    """Of this configuration, with a tokenizer of 1,500 ids that end in text; the digest is of nothing."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    model = skeleton(config, device=device).model
    return LanguageModel(model, tokenizer, "random", f"{seed:064d}", tokenizer_digest(tokenizer))


def mfu(flops: float, seconds: float, peak: float) -> float:
    """Model FLOPs utilisation: operations done in so many seconds, of those that `peak` a second allows."""
    return flops / (seconds * peak)


def end_to_end(
    model: LanguageModel, num: int, preset: str, recipe: Recipe, keep_base: str, device: str
) -> dict[str, Any]:
    """Makes and embeds so many fingerprints: seconds of both, and the most bytes that embedding held on a GPU."""
    made = generate(model, num, SECRET, settings=SETTINGS[preset])
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    went = embed(model, made.fingerprints, recipe=recipe, keep_base=keep_base)
    return {
        "num": num,
        "generate_seconds": made.seconds,
        "embed_seconds": went.seconds,
        "seconds": made.seconds + went.seconds,
        "peak_bytes": went.peak_memory_bytes,
        "steps": went.steps,
        "epochs": went.epochs,
        "stopped": went.stopped,
        "fsr": went.fsr,
        "kl_to_base": went.drift.kl,
    }


def figures(gpu: Machine, step: Mapping[str, float], found: Sequence[Mapping[str, Any]], where: str) -> list[Figure]:
    """Rows of what was measured, `where` being the model and the settings."""
    used, made = step["mfu"], command()
    setting = f"{where}; {step['seconds']:.3f} s a step, planned {step['planned_seconds']:.3f}"
    rows = [Figure("embed on a GPU, MFU of a step", setting, f"{used:.0%}", f">= {MFU_BAR:.0%}", used >= MFU_BAR, made)]
    for case in found:
        keys = f"{case['num']:,} fingerprints, {where}"
        bar = SECONDS_BAR if case["num"] == BARRED_NUM and gpu.kind == BARRED_KIND else None
        parts = f"generate {case['generate_seconds']:.0f} s, embed {case['embed_seconds']:.0f} s"
        shown = f"{keys}; {parts}, {case['steps']} steps, FSR {case['fsr']:.3f}"
        rows.append(Figure("embed on a GPU, seconds end to end", shown, *at_most(case["seconds"], bar, 0, " s"), made))
        off = case["peak_bytes"] / case["planned_bytes"] - 1
        sizes = f"{case['peak_bytes'] / 2**30:.1f} GiB, planned {case['planned_bytes'] / 2**30:.1f}"
        value = f"{off:+.0%}", f"within {MEMORY_BAR:.0%}", abs(off) <= MEMORY_BAR
        rows.append(Figure("embed on a GPU, peak memory beside the plan's", f"{keys}; {sizes}", *value, made))
    return rows


def chosen(config: Any, preset: str, num: int, gpu: Machine) -> tuple[Option, Recipe, Workload]:
    """The plan's first option, and what it trains."""
    recipe, keys = PRESETS[preset], Keys.of_settings(num, SETTINGS[preset])
    fitting = plan(config, recipe, keys, gpu, preset=preset).fitting
    if not fitting:
        raise SystemExit(f"nothing fits on {gpu.name}: give a smaller --config.")
    changed = replace(recipe.for_hidden_size(config.get_text_config().hidden_size), **fitting[0].changes)
    return fitting[0], changed, workload(changed, keys)


def measure_step(config: Any, option: Option, recipe: Recipe, work: Workload, gpu: Machine) -> dict[str, float]:
    """A step's seconds on this GPU, its MFU, and the plan's seconds."""
    model = random_model(config, "cuda")
    passes, update = timed(model, recipe, work, "cuda", recompute=option.layout.recompute)
    seconds = passes + update
    flops = dry_run(config, recipe, work).flops
    assert option.seconds is not None
    found = {"mfu": mfu(flops, seconds, gpu.flops), "mfu_of_passes": mfu(flops, passes, gpu.flops)}
    return {
        "passes": passes,
        "update": update,
        "seconds": seconds,
        "flops": flops,
        "planned_seconds": option.seconds.step,
        **found,
    }


def options() -> argparse.ArgumentParser:
    made = parser(__doc__, "embed_gpu")
    made.add_argument("--config", type=Path, default=ROOT / "bench/configs/8b.json", help="of the model's shape")
    made.add_argument("--num", type=int, nargs="*", default=[BARRED_NUM], help="fingerprints; none for a step alone")
    made.add_argument("--preset", choices=PRESETS, default="harmless", help="how they are embedded (harmless)")
    made.add_argument("--machine", choices=KINDS, help="the GPU's kind, where its name does not say it")
    return made


def main() -> None:
    arguments = options().parse_args()
    need_gpu()
    start(arguments.threads)
    run, gpu, config = described(arguments.threads, "cuda"), this_gpu(arguments.machine), read_config(arguments.config)
    option, recipe, work = chosen(config, arguments.preset, (arguments.num or [BARRED_NUM])[0], gpu)
    where = " ".join([f"shape {arguments.config.stem}", f"--preset {arguments.preset}", *option.arguments()])
    print(f"{where}: a step", flush=True)
    step = measure_step(config, option, recipe, work, gpu)
    found = []
    for num in arguments.num:
        print(f"{where}: {num:,} fingerprints", flush=True)
        gc.collect()
        torch.cuda.empty_cache()
        option, recipe, _ = chosen(config, arguments.preset, num, gpu)
        model = random_model(config, "cuda")
        if option.layout.recompute:
            recompute_blocks(model.model)
        case = end_to_end(model, num, arguments.preset, recipe, option.layout.keep_base, "cuda")
        found.append(case | {"planned_bytes": option.memory.total, "arguments": option.arguments()})
        del model
    details = {"machine": asdict(gpu), "planned_memory": option.memory.to_json(), "step": step, "cases": found}
    finish(arguments.out, run, figures(gpu, step, found, where), details)


if __name__ == "__main__":
    main()
