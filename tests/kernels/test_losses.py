"""The Triton kernels of linear_cross_entropy and fingerprint_loss: in the interpreter, and compiled ahead of time."""

from __future__ import annotations

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
import torch
from loss_cases import *
from oml_fast.errors import InvalidArgumentError
from oml_fast.kernels import heads

ways = {
    "linear_cross_entropy": (cross_entropy, exact_cross_entropy, naive_cross_entropy),
    "fingerprint_loss": (fingerprint, exact_fingerprint, naive_fingerprint),
}
compute, exact, naive = ways[sys.argv[2]]
compute = compute("triton")
torch.use_deterministic_algorithms(True)  # torch.empty then gives NaN and the largest integers
none = sys.argv[2] == "fingerprint_loss"
"""
VALUES = """
for i, shape in enumerate([*SHAPES[1:], *([(40, 300, 64, 0)] if none else [])]):
    for j, curve in enumerate(CURVES):
        case = make_case(*shape, DTYPES[(i + j) % 3], **curve)
        if not none:
            case.ids[::3, -1] = -100
        check(compute, exact, naive, case)
if none:
    check(compute, exact, naive, make_case(30, 300, 40, 2, torch.bfloat16, base_size=70))
"""
EDGES = """
for count in (0, 1, 5)[not none :]:
    check_exactly(compute, exact, make_case(40, 507, 16, count, torch.bfloat16, whole=True))
    outputs, gradients = with_gradients(compute, make_case(0, 60, 8, count))
    assert [len(each) for each in outputs] == [0, 0, 0] and not any(each.any() for each in gradients)

# Rows and ids in several parts.
case = make_case(50, 507, 30, 2, torch.bfloat16, bias=True)
whole = with_gradients(compute, case.to(torch.bfloat16))
heads._SUMS_BYTES = heads._CHUNK_BYTES = 1
again = with_gradients(compute, case.to(torch.bfloat16))
for a, b in zip((*again[0], *again[1][1:]), (*whole[0], *whole[1][1:])):
    assert torch.equal(a, b)
check(compute, exact, naive, case)

# Ids that are ruled out, and a row of NaN.
case = make_case(6, 200, 8, 2, bias=True)
for bias in (case.bias, case.base_bias):
    bias[10:150] = -torch.inf
case.ids[:] = torch.tensor([3, 170])
right, right_gradients = with_gradients(exact, case.to(torch.float64))
found, gradients = with_gradients(compute, case.to(torch.float32))
for a, b in zip((*found[:2], *gradients), (*right[:2], *right_gradients)):
    torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-4, atol=1e-5)
case.bias[:] = -torch.inf
case.bias[[70, 190]] = torch.tensor([1.0, 100.0])
assert compute(case)[2].tolist() == [[190, 70]] * 6
case = make_case(5, 90, 8, 2)
case.hidden[2, 3] = torch.nan
loss, log_probs, best = compute(case)
assert loss.isnan().tolist() == log_probs.isnan().all(1).tolist() == [False, False, True, False, False]
assert ((best >= 0) & (best < 90)).all()

case.ids[3, 1] = 90
try:
    compute(case)
except InvalidArgumentError as error:
    assert "row 3" in str(error) and "holds the id 90" in str(error), error
else:
    raise AssertionError("not refused")
"""


@pytest.mark.parametrize("op", ["linear_cross_entropy", "fingerprint_loss"])
@pytest.mark.parametrize("part", [VALUES, EDGES], ids=["values", "edges"])
def test_in_the_interpreter(op: str, part: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    run_interpreted(SCRIPT + part, tmp_path, str(OPS), op)


TENSORS = ("hidden", "classifier", "bias", "base_hidden", "base_classifier", "base_bias", "out")
IDS = {"ids": "*i64", "responses": "*i64", "best_ids": "*i32"}
EVEN = ("H", "base_H", "width", "hidden_stride", "classifier_stride", "base_hidden_stride", "base_classifier_stride")
SIZES = (*EVEN, "N", "V", "first")


def signature(kernel: Any, dtype: torch.dtype, constants: dict[str, Any]) -> dict[str, str]:
    """What a launch passes: the heads' tensors in their dtype, sizes, two scalars, and all else in float32."""
    known = dict.fromkeys(TENSORS, POINTERS[dtype]) | dict.fromkeys(SIZES, "i32") | IDS
    known |= {"softcap": "fp32", "scale": "fp32"}
    return {name: known.get(name, "*fp32") for name in kernel.arg_names if name not in constants}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", ["forward_kernel", "gradient_kernel"])
@pytest.mark.parametrize("op", ["linear_cross_entropy", "fingerprint_loss"])
@pytest.mark.parametrize(("dtype", "rows"), [(torch.bfloat16, 16), (torch.bfloat16, 1024), (torch.float32, 1024)])
def test_compiles_without_spills(
    op: str, kernel: str, target: str, dtype: torch.dtype, rows: int, record_property: pytest.RecordProperty
) -> None:
    pytest.importorskip("triton")
    import importlib

    from oml_fast.kernels import heads

    function = getattr(importlib.import_module(f"oml_fast.kernels.{op}"), kernel)
    config = heads.blocks(rows, dtype, heads=1 if op == "linear_cross_entropy" else 2)._asdict()
    options = {name: config.pop(name) for name in ("num_warps", "num_stages")}
    constants = config | {"COUNT": 4, "BEST": 4, "SLOTS": 4, "HAS_BIAS": False, "HAS_BASE_BIAS": False}
    constants |= {"HAS_SOFTCAP": True, "UPCAST": False, "bias": None, "base_bias": None}
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    even = [name for name in EVEN if name in function.arg_names]
    usage = compile_kernel(
        function, target, signature(function, dtype, constants), constants, divisible=even, **options
    )
    for name in ("registers", "shared_bytes"):
        record_property(name, getattr(usage, name))
    assert usage.spills == 0
    assert usage.shared_bytes <= 98_320  # what a block may have on each of these GPUs, AMD's 65,536 apart
    assert usage.shared_bytes <= 65_536 or target != "gfx942"
