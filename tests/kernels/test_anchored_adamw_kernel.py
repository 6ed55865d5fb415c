"""The Triton kernels of anchored_adamw: the reference's bits in Triton's interpreter, and no spills where they ship."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from triton_tools import TARGETS, compile_kernel, run_interpreted

SCRIPT = """
import itertools, sys
sys.path.insert(0, sys.argv[1])
from anchored_adamw_cases import DTYPES, LAYOUTS, after, assert_same, case
import torch

for layout, dtype, n in itertools.product(LAYOUTS, DTYPES, (1, 1541)):
    tensors = case(n, layout, dtype, n, extremes=True)
    tensors["gradient"][3::50], tensors["gradient"][5::50] = torch.inf, torch.nan
    numbers = {"step": n + 2**32 * (n % 2), "seed": 2**63 - n, "offset": 2**33 - 501}
    assert_same(after(tensors, "triton", **numbers), after(tensors, "reference", **numbers), (layout, dtype, n))
print("same")
"""
SCALARS = ("beta1", "gain1", "beta2", "gain2", "step_size", "root_factor", "eps", "keep")
COMPACT = ("gradient", "first_moment", "second_moment", "base", "weight")


def test_the_reference_bits_in_the_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    folder = Path(__file__).resolve().parent.parent / "ops"
    assert run_interpreted(SCRIPT, tmp_path, str(folder)) == "same\n"


def arguments(kernel: str, gradient: str, weight: str) -> tuple[Any, dict[str, str], dict[str, Any]]:
    """A kernel, the types of its arguments and its constants, as `launch` has them for large matrices."""
    from oml_fast.kernels import anchored_adamw as kernels

    types = dict.fromkeys(SCALARS, "fp32") | {"n": "i32"}
    if kernel == "compact":
        types |= dict.fromkeys(COMPACT, "*bf16") | {"gradient": gradient, "seed": "i64", "step": "i32", "offset": "i64"}
        return kernels.compact_kernel, types, {"BLOCK": kernels.BLOCK}
    types |= dict.fromkeys(("change", "first_moment", "second_moment"), "*fp32") | {"gradient": gradient}
    constants = {"WRITES_WEIGHT": weight != "none", "BLOCK": kernels.BLOCK}
    if weight == "none":
        return kernels.masters_kernel, types, constants | {"base": None, "weight": None}
    return kernels.masters_kernel, types | {"base": weight, "weight": weight}, constants


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("kernel", "gradient", "weight", "registers"),
    [
        ("masters", "*bf16", "*bf16", 48),
        ("masters", "*fp32", "*fp16", 48),
        ("masters", "*fp32", "none", 48),
        ("compact", "*bf16", "*bf16", 72),
    ],
)
def test_compiles_without_spills(target: str, kernel: str, gradient: str, weight: str, registers: int) -> None:
    pytest.importorskip("triton")
    from oml_fast.kernels.anchored_adamw import OPTIONS

    function, *signature = arguments(kernel, gradient, weight)
    usage = compile_kernel(function, target, *signature, divisible={"n"}, **OPTIONS)
    assert usage.spills == 0
    assert usage.registers <= registers


@pytest.mark.parametrize("kernel", ["masters", "compact"])
def test_every_operation_is_rounded_on_its_own(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes the GPU's bits those of the reference, as far as it can be seen without one."""
    triton = pytest.importorskip("triton")
    from oml_fast.kernels.anchored_adamw import OPTIONS

    compiled = []
    compile_one = triton.compile
    monkeypatch.setattr(triton, "compile", lambda *a, **k: compiled.append(compile_one(*a, **k)) or compiled[-1])
    function, *signature = arguments(kernel, "*bf16", "*bf16")
    compile_kernel(function, "sm_90", *signature, divisible={"n"}, **OPTIONS)
    found = set(re.findall(r"\b(?:fma|mad|mul|add|sub|div|sqrt)\.[\w.]*f32\b", compiled[0].asm["ptx"]))
    assert found == {"mul.rn.f32", "add.rn.f32", "sub.rn.f32", "div.rn.f32", "sqrt.rn.f32"}
