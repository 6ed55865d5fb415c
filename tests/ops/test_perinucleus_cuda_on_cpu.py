"""csrc/perinucleus.cu without a GPU: its source compiled for the CPU (cuda_on_cpu) gives the bits of `native`.

With blocks of 64 threads and lists of 256 tokens instead of 512 and 4,096, so that small rows take every path. What a
GPU alone can show is in test_perinucleus_cuda.py.
"""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from perinucleus_cases import DTYPES, KINDS, Case, large_cases, random_logits, random_mask, small_cases
from torch import Tensor

from oml_fast import backends
from oml_fast.ops import perinucleus
from oml_fast.ops.perinucleus import Perinucleus
from oml_fast.ops.reference import RowStatus

ROOT = Path(__file__).resolve().parents[2]
LIST, PART = 256, 16384
NATIVE = backends.availability("native")
COMPILER = shutil.which("g++")
# cuda_on_cpu needs GNU's C library and _Float16.
pytestmark = [
    pytest.mark.skipif(not NATIVE.available, reason=NATIVE.detail),
    pytest.mark.skipif(COMPILER is None or not (ROOT / "csrc").is_dir(), reason="no g++, or no source tree"),
]
Kernel = Callable[[Case], tuple[Tensor, ...]]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """What the kernel writes for a case: token ids, probabilities, size and mass of the nucleus, status."""
    path = tmp_path_factory.mktemp("on-cpu") / "perinucleus.so"
    source = ROOT / "tests/ops/cuda_on_cpu"
    options = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-pthread"]
    command = ["g++", *options, f"-I{ROOT / 'csrc'}", f"-I{source}", "-o", path, source / "perinucleus.cpp"]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(path))
    library.workspace_bytes.restype = ctypes.c_int64

    def run(case: Case) -> tuple[Tensor, ...]:
        x, mask = case.logits, case.admissible
        rows, vocab = x.shape
        out = (
            torch.full((rows, case.width), -7),
            torch.full((rows, case.width), torch.nan, dtype=torch.float64),
            torch.full((rows,), -7),
            torch.full((rows,), torch.nan, dtype=torch.float64),
            torch.full((rows,), 77, dtype=torch.uint8),
        )
        needed = library.workspace_bytes(ctypes.c_int64(rows), ctypes.c_int64(case.width))
        workspace = torch.full((needed + 64,), 85, dtype=torch.uint8)
        sizes = (ctypes.c_int64(number) for number in (rows, vocab, x.stride(0)))
        pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (*out, workspace))
        library.run(
            ctypes.c_void_p(x.data_ptr()),
            DTYPES.index(x.dtype),
            *sizes,
            ctypes.c_void_p(None if mask is None else mask.data_ptr()),
            ctypes.c_double(case.threshold),
            ctypes.c_int64(case.width),
            *pointers,
        )
        assert (workspace[needed:] == 85).all()
        return out

    return run


def check(kernel: Kernel, case: Case) -> None:
    expected = perinucleus(case.logits, case.threshold, case.width, case.admissible, backend="native")
    *columns, status = kernel(case)
    found = Perinucleus(*columns, short=status == RowStatus.SHORT)
    for name, left, right in zip(Perinucleus._fields, found, expected, strict=True):
        where = f"{name}: {case.kind} {tuple(case.logits.shape)} {case.logits.dtype} t={case.threshold} W={case.width}"
        assert torch.equal(left, right), where


def some(cases: Iterator[Case], rows: int) -> Iterator[Case]:
    """The same with only the first rows of each."""
    return (Case(c.logits[:rows], c.threshold, c.width, c.admissible, c.kind) for c in cases)


def test_small_rows(kernel: Kernel) -> None:
    for case in some(small_cases(2400, np.random.default_rng(11)), 2):
        check(kernel, case)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_several_parts(kernel: Kernel, kind: str) -> None:
    rng = np.random.default_rng(12)
    generator = torch.Generator().manual_seed(12)
    for dtype, vocab in zip(DTYPES, (2 * PART + 1, PART + 17, 3 * PART - 5), strict=True):
        check(kernel, Case(random_logits(kind, 1, vocab, dtype, generator), 0.8, 16, random_mask(vocab, rng), kind))


def test_a_large_vocabulary(kernel: Kernel) -> None:
    for case in some(large_cases(5, "peaky", np.random.default_rng(13)), 1):
        check(kernel, case)


def test_ties_are_told_apart_by_id(kernel: Kernel) -> None:
    rows = torch.zeros(3, 5001)
    rows[0, ::2] = -1.0
    rows[1, :100] = 3.0
    rows[2] = rows[2].masked_fill(torch.arange(5001) % 3 > 0, -torch.inf)
    for threshold, width in itertools.product((0.0, 0.4, 0.9), (1, 16, 300)):
        check(kernel, Case(rows, threshold, width, None, "ties"))
        check(kernel, Case(rows, threshold, width, torch.arange(5001) % 7 == 0, "ties"))


def test_the_list_full_and_overfull(kernel: Kernel) -> None:
    for near in (LIST - 1, LIST, LIST + 1, LIST + 70):
        row = torch.full((1, 3001), -9.0)
        row[0, 7 : 7 + 2 * near : 2] = torch.linspace(-7, 0, near)
        for threshold in (0.5, 0.9):
            check(kernel, Case(row, threshold, 16, None, f"{near} near"))


def test_candidates_far_from_the_maximum(kernel: Kernel) -> None:
    row = torch.randn(2, 4001, generator=torch.Generator().manual_seed(14))
    row[:, 1234] = 30.0
    for width in (5, 257, 4001):
        check(kernel, Case(row, 0.8, width, None, "far"))
    check(kernel, Case(row * 400, 0.8, 4001, None, "vanishing"))
    # The second token's probability is the least above 0, the next two round to 0.
    least = torch.tensor([[0.0, -744.4, -745.2, -745.9, -746.1, -torch.inf]])
    check(kernel, Case(least, 0.8, 5, None, "least"))


def test_any_alignment_and_stride(kernel: Kernel) -> None:
    for dtype in DTYPES:
        wide = random_logits("peaky", 4, 700, dtype, torch.Generator().manual_seed(15))
        for first in range(9):
            check(kernel, Case(wide[:, first : first + 611], 0.8, 16, None, f"from {first}"))
        check(kernel, Case(wide[2:3].expand(3, -1), 0.8, 16, None, "expanded"))


def test_more_rows_than_the_workspace_holds_at_once(kernel: Kernel) -> None:
    # 2**22 keys hold 8 rows of 2**19.
    generator = torch.Generator().manual_seed(16)
    row = random_logits("peaky", 1, 2**18 + 1, torch.bfloat16, generator)
    case = Case(row.expand(9, -1), 0.8, 2**18 + 1, torch.rand(2**18 + 1, generator=generator) < 1e-4, "wide")
    check(kernel, case)


def test_bad_rows(kernel: Kernel) -> None:
    rows = torch.randn(5, 900, generator=torch.Generator().manual_seed(17))
    rows[1, 899], rows[2], rows[3, 0], rows[4] = torch.nan, -torch.inf, torch.inf, torch.nan
    token_ids, probs, size, mass, status = kernel(Case(rows, 0.8, 16, None, "bad"))
    wrong = [RowStatus.NAN, RowStatus.NO_FINITE, RowStatus.PLUS_INFINITY, RowStatus.NAN]
    assert status.tolist() == [RowStatus.OK, *wrong]
    assert (token_ids[1:] == -1).all()
    assert not any(column[1:].any() for column in (probs, size, mass))
    check(kernel, Case(rows[:1], 0.8, 16, None, "good"))
