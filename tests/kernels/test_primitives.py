"""The Triton primitives, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import torch, triton, triton.language as tl
from oml_fast.kernels.primitives import merge_exp_sums, ordered_bits

@triton.jit
def order(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, ordered_bits(tl.load(x + at)))

@triton.jit
def merge(a, b, out, N: tl.constexpr):
    at = tl.arange(0, N)
    highest, total = merge_exp_sums(tl.load(a + at), tl.load(a + N + at), tl.load(b + at), tl.load(b + N + at))
    tl.store(out + at, highest)
    tl.store(out + N + at, total)

inf = float("inf")
x = torch.tensor([-inf, -3e38, -1.0, -1e-42, -0.0, 0.0, 1e-42, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 3e38, inf])
out = torch.empty(16, dtype=torch.int64)
order[(1,)](x, out, 16)
assert (out.diff() > 0).tolist() == [i != 4 for i in range(15)], out
assert out[4] == out[5] and out.min() >= 0 and out.max() < 2**32

a = torch.tensor([[-inf, 1.0, -inf, 80.0], [0.0, 2.0, 0.0, 1.0]])
b = torch.tensor([[-inf, 3.0, 2.0, -80.0], [0.0, 1.5, 4.0, 9.0]])
out = torch.full((2, 4), torch.nan)
merge[(1,)](a, b, out, 4)
right = torch.logaddexp(a[0] + a[1].log(), b[0] + b[1].log())
torch.testing.assert_close(out[0] + out[1].log(), right)
assert out[1, 0] == 0
"""


def test_primitives_in_the_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    script = tmp_path / "primitives.py"  # a file, because Triton reads a kernel's source
    script.write_text(SCRIPT)
    # Triton decides on its interpreter when a kernel is defined, so it has a process of its own.
    run = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_the_package_itself_needs_no_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import oml_fast.kernels"
    subprocess.run([sys.executable, "-c", code], check=True)
