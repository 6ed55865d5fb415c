"""Triton without a GPU: scripts in its interpreter, and kernels compiled ahead of time for GPUs.

run_interpreted(SCRIPT, tmp_path)
usage = compile_kernel(kernel, "sm_90", {"x": "*bf16", "N": "i32"}, {"BLOCK": 1024}, num_warps=4)
assert usage.spills == 0
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Triton's name of the backend, the architecture, threads in a warp.
_GPUS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
TARGETS = tuple(_GPUS)
# The names that Triton has for the dtypes of pointers.
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}


@dataclass(frozen=True, slots=True)
class Usage:
    """What a compiled kernel takes."""

    registers: int  # of a thread
    spills: int  # bytes of a thread that go to memory because the registers do not hold them
    shared_bytes: int


def run_interpreted(script: str, folder: Path, *arguments: str) -> str:
    """Run a script's text with Triton's interpreter, in a process of its own; its stdout. Fails where the script does.

    A process of its own, because Triton decides on the interpreter when a kernel is defined; a file in `folder`,
    because Triton reads a kernel's source.
    """
    path = folder / "interpreted.py"
    path.write_text(script)
    run = subprocess.run(
        [sys.executable, path, *arguments],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def compile_kernel(
    kernel: Any,
    target: str,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    unaligned: Collection[str] = (),
    divisible: Collection[str] = (),
    **options: Any,
) -> Usage:
    """Compile a `triton.jit` kernel for one of TARGETS as a launch would.

    types: of the arguments that are no constants, as Triton names them ("*bf16", "i32", "fp32").
    constants: the `tl.constexpr` arguments; None for a pointer that is not given.
    unaligned: pointers that are not taken to be aligned to 16 bytes. divisible: integers that are multiples of 16.
    options: num_warps, num_stages.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    assert set(names) == set(types) | set(constants), set(names) ^ (set(types) | set(constants))
    aligned = {name for name, kind in types.items() if kind.startswith("*") and name not in unaligned} | set(divisible)
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget(*_GPUS[target]), options=options)
    count = _amd_usage if target.startswith("gfx") else _nvidia_usage
    registers, spills = count(compiled, target)
    return Usage(registers, spills, compiled.metadata.shared)


def _nvidia_usage(compiled: Any, target: str) -> tuple[int, int]:
    """Registers and spilled bytes, as ptxas tells them: the one that Triton carries, others reject its PTX."""
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    arch = int(target.removeprefix("sm_"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(compiled.asm["ptx"])
        command = [get_ptxas(arch).path, "-v", f"--gpu-name={sm_arch_from_capability(arch)}", path, "-o", f"{path}.o"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = [int(count) for count in re.findall(r"(\d+) bytes spill", said)]
    assert len(spills) == 2, said
    found = re.search(r"Used (\d+) registers", said)
    assert found, said
    return int(found[1]), sum(spills)


def _amd_usage(compiled: Any, target: str) -> tuple[int, int]:
    """Vector registers and bytes of scratch memory, from the metadata at the end of the assembly.

    Scalar registers that are parked in lanes of vector registers go to no memory, and do not count.
    """
    text = compiled.asm["amdgcn"]
    counts = {name: int(count) for name, count in re.findall(r"\.(\w+): +(\d+)", text)}
    assert counts["vgpr_spill_count"] == 0 or counts["private_segment_fixed_size"] > 0
    return counts["vgpr_count"], counts["private_segment_fixed_size"]
