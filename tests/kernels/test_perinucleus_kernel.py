"""The Triton kernels of perinucleus: agreement in Triton's interpreter, and no spills where they ship."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from triton_tools import POINTERS, TARGETS, compile_kernel, run_interpreted

OPS = Path(__file__).resolve().parent.parent / "ops"
SCRIPT = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore")  # of numpy, where masked elements are infinite
import numpy as np, torch
from perinucleus_cases import *
from oml_fast import backends, ops
from oml_fast.kernels import perinucleus as kernel
from oml_fast.ops.reference import PerinucleusRows, RowStatus, perinucleus as reference

torch.use_deterministic_algorithms(True)  # torch.empty then gives NaN and the largest integers
inf, nan = torch.inf, torch.nan
native = backends.availability("native").available

def run(case):
    return PerinucleusRows(*kernel.perinucleus(case.logits, case.threshold, case.width, case.admissible))

def check(case):
    found, right = run(case), reference(case.logits, case.threshold, case.width, case.admissible)
    x = case.logits.float().numpy()
    for i, row in enumerate(zip(*(column.numpy() for column in found))):
        inside = check_row(x[i], case, *row[:4], row[4] == RowStatus.SHORT)
        assert found.status[i] == right.status[i]
        if not inside:
            assert found.nucleus_size[i] == right.nucleus_size[i]
            assert torch.equal(found.token_ids[i], right.token_ids[i])
    if native:  # has the same masses, to the bit
        same = ops.perinucleus(case.logits, case.threshold, case.width, case.admissible, backend="native")
        assert torch.equal(found.token_ids, same.token_ids)
        assert torch.equal(found.nucleus_size, same.nucleus_size)
        assert torch.equal(found.nucleus_mass, same.nucleus_mass)
        torch.testing.assert_close(found.probs, same.probs, rtol=1e-14, atol=0)

def assert_same(a, b, rows=slice(None)):
    for name, left, right in zip(a._fields, a, b):
        assert torch.equal(left, right[rows]), name

def some(case, rows):
    return Case(case.logits[rows], case.threshold, case.width, case.admissible, case.kind)
"""
PARTS = {
    "random": """
count = 0
for case in small_cases(320, np.random.default_rng(5)):
    check(some(case, slice(2)))
    count += 1
assert count >= 16
""",
    "edges": """
largest = torch.finfo(torch.float32).max
rows = torch.tensor([
    [largest, largest, -largest, 0.0, 1.0],
    [-largest, -largest, -inf, -largest, -inf],
    [1e-42, 0.0, -1e-42, 1e-45, 1e-42],  # tokens of equal mass, told apart by their logits
    [0.0, -700.0, -744.0, -760.0, -0.0],
    [513.0, 512.0, 511.0, -513.0, 513.0],
    [-0.0, 0.0, -0.0, 0.0, -1.0],
])
for threshold in (0.0, 1 - 2**-53):
    found, right = run(Case(rows, threshold, 4, None, "")), reference(rows, threshold, 4, None)
    assert_same(found._replace(probs=right.probs, nucleus_mass=right.nucleus_mass), right)
    torch.testing.assert_close(found.probs, right.probs, rtol=5e-7, atol=5e-324)

bad = torch.randn(4, 700)
bad[0, 699], bad[1, 5], bad[1, 600], bad[2] = inf, inf, -nan, -inf
found = run(Case(bad, 0.8, 3, torch.zeros(700, dtype=torch.bool), ""))
R = RowStatus
assert found.status.tolist() == [R.PLUS_INFINITY, R.NAN, R.NO_FINITE, R.SHORT]
assert found.token_ids.tolist() == [[-1] * 3] * 4 and not found.probs.any()
check(Case(torch.zeros(1, 1), 0.8, 1, None, "one token"))

# Candidates far below the maximum: among the largest of each group, below these, and where a mask leaves few.
generator = torch.Generator().manual_seed(0)
steep = torch.randn(1, 3001, generator=generator)
steep[0, 2000] = 20.0
check(Case(steep, 0.8, 16, None, "one peak"))
steep[0, :1000] -= 90
check(Case(steep, 0.8, 1, steep[0] < 0, "admissible ones further below"))
check(Case(steep, 0.8, 3, steep[0] < -2.5, "few admissible"))
check(Case(torch.zeros(1, 3001), 0.4, 16, torch.arange(3001) % 2 == 0, "ties"))
""",
    "layouts": """
x = random_logits("peaky", 5, 801, torch.float32, torch.Generator().manual_seed(4))
x[1], x[3] = (0.3 * x[1]).round(), 0.05 * x[3]
case = Case(x, 0.8, 16, torch.arange(801) % 3 > 0, "")
expected = run(case)
order = torch.tensor([3, 0, 4, 1, 2])
wide = torch.full((5, 881), nan)
wide[:, 7:808] = x
layouts = {
    "permuted and transposed": (x[order].t().contiguous().t(), order),
    "strided": (wide[:, 7:808], slice(None)),
    "expanded": (x[3:4].expand(2, -1), [3, 3]),
}
for logits, rows in layouts.values():
    assert_same(run(Case(logits, 0.8, 16, case.admissible, "")), expected, rows)
# More programs, one after another, rows in parts, and lists that overflow.
changes = [{"BLOCK": 256}, {"BLOCK": 256, "PROGRAMS": 1, "LIST": 64}, {"ROWS": 2, "LIST": 8, "WALK_BLOCK": 1024}]
for change in changes:
    before = {name: getattr(kernel, name) for name in change}
    vars(kernel).update(change)
    assert_same(run(case), expected)
    vars(kernel).update(before)
""",
    "large": """
generator = torch.Generator().manual_seed(6)
mask = torch.rand(50_001, generator=generator) < 0.5
for kind, dtype, width in (("peaky", torch.bfloat16, 16), ("flat", torch.float32, 64)):
    check(Case(random_logits(kind, 1, 50_001, dtype, generator), 0.8, width, mask, kind))
""",
}


@pytest.mark.parametrize("part", PARTS)
def test_agrees_in_the_interpreter(part: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    run_interpreted(SCRIPT + PARTS[part], tmp_path, str(OPS))


KERNELS = {"extremes": 48, "masses": 120, "histogram": 104, "gather": 120, "select": 168, "write": 64}
SIZES = ("V", "stride", "width")
TYPES = dict.fromkeys(SIZES, "i32") | {
    "threshold_bits": "i64",
    "admissible": "*u8",
    "extremes": "*fp32",
    "near": "*i32",
    "nucleus_mass": "*fp64",
    "probs": "*fp64",
    "statuses": "*u8",
}


def arguments(name: str, dtype: torch.dtype) -> tuple[Any, dict[str, str], dict[str, Any]]:
    """A kernel, the types of its arguments and its constants, as a launch has them at B = 128 and V = 128,256."""
    from oml_fast.kernels import perinucleus as kernels

    kernel = getattr(kernels, f"{name}_kernel")
    block = kernels.WALK_BLOCK if name in ("select", "write") else kernels.BLOCK
    constants = {"HAS_MASK": True, "FRACTION": 44, "SPLITS": 8, "BLOCK": block, "LIST": kernels.LIST}
    constants = {argument: value for argument, value in constants.items() if argument in kernel.arg_names}
    types = {"logits": POINTERS[dtype]} | TYPES
    return kernel, {each: types.get(each, "*i64") for each in kernel.arg_names if each not in constants}, constants


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.bfloat16) for name in KERNELS), ("masses", torch.float32)], ids=str
)
def test_compiles_without_spills(
    name: str, dtype: torch.dtype, target: str, record_property: pytest.RecordProperty
) -> None:
    pytest.importorskip("triton")
    from oml_fast.kernels.perinucleus import OPTIONS

    kernel, *signature = arguments(name, dtype)
    usage = compile_kernel(kernel, target, *signature, divisible={*SIZES} & {*kernel.arg_names}, **OPTIONS)
    for each in ("registers", "shared_bytes"):
        record_property(each, getattr(usage, each))
    assert usage.spills == 0
    assert usage.registers <= KERNELS[name]
    assert usage.shared_bytes <= 65_536


@pytest.mark.parametrize("name", ["masses", "histogram", "gather", "select", "write"])
def test_every_operation_is_rounded_on_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes the GPU's bits those of the interpreter and of the CPU, as far as it can be seen without one."""
    triton = pytest.importorskip("triton")
    from oml_fast.kernels.perinucleus import OPTIONS

    compiled = []
    compile_one = triton.compile
    monkeypatch.setattr(triton, "compile", lambda *a, **k: compiled.append(compile_one(*a, **k)) or compiled[-1])
    kernel, *signature = arguments(name, torch.bfloat16)
    compile_kernel(kernel, "sm_90", *signature, divisible={*SIZES} & {*kernel.arg_names}, **OPTIONS)
    found = set(re.findall(r"\b(?:fma|mad|mul|add|sub|div|ex2)\.[\w.]*f(?:32|64)\b", compiled[0].asm["ptx"]))
    assert found
    assert {
        operation for operation in found if not re.fullmatch(r"(mul|add|sub|div)\.rn\.f(32|64)", operation)
    } == set()
