"""perinucleus on a GPU: "cuda" has the bits of `native`, "triton" agrees; graphs, streams, no waiting.

Its logic is tested without a GPU as well: test_perinucleus_cuda_on_cpu.py, and tests/kernels for Triton.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from perinucleus_cases import DTYPES, KINDS, Case, check_row, large_cases, random_logits, random_mask, small_cases
from torch import Tensor

from oml_fast import backends
from oml_fast.errors import InvalidArgumentError
from oml_fast.ops import Perinucleus, perinucleus

CUDA, TRITON, NATIVE = (backends.availability(name) for name in ("cuda_kernels", "triton", "native"))
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
cuda_only = pytest.mark.skipif(not CUDA.available, reason=CUDA.detail)
GPU = [
    pytest.param("cuda", marks=cuda_only),
    pytest.param("triton", marks=pytest.mark.skipif(not TRITON.available, reason=TRITON.detail)),
]
VOCABULARIES = (32_000, 49_152, 50_257, 128_256, 151_937, 262_144)


def run(case: Case, backend: str) -> Perinucleus:
    mask = None if case.admissible is None else case.admissible.cuda()
    return perinucleus(case.logits.cuda(), case.threshold, case.width, mask, backend=backend)


def assert_same(a: Perinucleus, b: Perinucleus, where: str = "") -> None:
    for name, left, right in zip(Perinucleus._fields, a, b, strict=True):
        assert torch.equal(left.cpu(), right.cpu()), f"{name} {where}"


def check(case: Case, backend: str) -> int:
    found = run(case, backend)
    where = f"{case.kind} {tuple(case.logits.shape)} {case.logits.dtype} t={case.threshold} W={case.width}"
    if backend == "cuda":
        arguments = case.logits, case.threshold, case.width, case.admissible
        assert_same(found, perinucleus(*arguments, backend="native"), where)
    else:
        columns = [column.cpu().numpy() for column in found]
        for i, row in enumerate(case.logits.float().numpy()):
            check_row(row, case, *(column[i] for column in columns))
    return len(case.logits)


def cases(small: int, large: int) -> Iterator[Case]:
    rng = np.random.default_rng(21)
    yield from small_cases(small, rng)
    for kind in KINDS:
        yield from large_cases(large // len(KINDS), kind, rng)


@pytest.mark.slow
@pytest.mark.parametrize("backend", GPU)
def test_100000_rows(backend: str) -> None:
    assert sum(check(case, backend) for case in cases(97_000, 3000)) >= 100_000


@pytest.mark.parametrize("backend", GPU)
@pytest.mark.parametrize("rows", [1, 16, 128])
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_sizes(backend: str, rows: int, vocab: int) -> None:
    rng = np.random.default_rng(vocab + rows)
    generator = torch.Generator().manual_seed(vocab + rows)
    for kind, dtype in zip(KINDS, itertools.cycle(DTYPES), strict=False):
        check(Case(random_logits(kind, rows, vocab, dtype, generator), 0.8, 16, random_mask(vocab, rng), kind), backend)


def logits(kind: str, rows: int = 128, vocab: int = 50_257, dtype: torch.dtype = torch.float32) -> Tensor:
    return random_logits(kind, rows, vocab, dtype, torch.Generator().manual_seed(22)).cuda()


@pytest.mark.parametrize("backend", GPU)
@pytest.mark.parametrize("kind", KINDS)
def test_runs_and_batches_change_nothing(backend: str, kind: str) -> None:
    x = logits(kind)
    mask = torch.rand(x.shape[1], generator=torch.Generator().manual_seed(23)).cuda() < 0.3
    expected = perinucleus(x, 0.8, 16, mask, backend=backend)
    for _ in range(10):
        assert_same(perinucleus(x, 0.8, 16, mask, backend=backend), expected)
    for size in (1, 5, 16, 64):
        parts = [perinucleus(some, 0.8, 16, mask, backend=backend) for some in x.split(size)]
        assert_same(Perinucleus(*(torch.cat(column) for column in zip(*parts, strict=True))), expected)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(24)).cuda()
    shuffled = perinucleus(x[order], 0.8, 16, mask, backend=backend)
    assert_same(shuffled, Perinucleus(*(column[order] for column in expected)))


@pytest.mark.parametrize("backend", GPU)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(backend: str, dtype: torch.dtype) -> None:
    x = logits("peaky", 6, 20_001, dtype)
    expected = perinucleus(x, 0.8, 16, backend=backend)
    wide = torch.full((6, 20_100), torch.nan, dtype=dtype, device="cuda")
    for first in range(9):
        wide[:, first : first + 20_001] = x
        assert_same(perinucleus(wide[:, first : first + 20_001], 0.8, 16, backend=backend), expected)
    assert_same(perinucleus(x.t().contiguous().t(), 0.8, 16, backend=backend), expected)
    same = perinucleus(x[2:3].expand(4, -1), 0.8, 16, backend=backend)
    assert_same(same, Perinucleus(*(column[[2, 2, 2, 2]] for column in expected)))
    mask = torch.rand(40_002, device="cuda") < 0.5
    strided = perinucleus(x, 0.8, 16, mask[::2], backend=backend)
    assert_same(strided, perinucleus(x, 0.8, 16, mask[::2].contiguous(), backend=backend))


@pytest.mark.parametrize("backend", GPU)
def test_ties_and_wide_windows(backend: str) -> None:
    rows = torch.zeros(3, 50_257)
    rows[0, ::2] = -1.0
    rows[1, :9000] = 3.0
    rows[2] = rows[2].masked_fill(torch.arange(50_257) % 3 > 0, -torch.inf)
    for threshold, width in itertools.product((0.0, 0.4, 0.9), (1, 16, 5000)):
        check(Case(rows, threshold, width, None, "ties"), backend)


@pytest.mark.parametrize("backend", GPU)
def test_rows_that_cannot_be_used(backend: str) -> None:
    x = logits("peaky", 8)
    expected = perinucleus(x, backend=backend)
    bad = x.clone()
    bad[1, 50_256], bad[3, 7], bad[4] = torch.nan, torch.inf, -torch.inf
    found = perinucleus(bad, backend=backend, checked=False)
    for row in (1, 3, 4):
        assert found.token_ids[row].tolist() == [-1] * 16
        assert not found.probs[row].any()
        assert (found.nucleus_size[row], found.nucleus_mass[row], found.short[row]) == (0, 0, True)
    good = torch.tensor([0, 2, 5, 6, 7], device="cuda")
    assert_same(Perinucleus(*(c[good] for c in found)), Perinucleus(*(c[good] for c in expected)))
    with pytest.raises(InvalidArgumentError, match=r"^row 1 of logits holds NaN"):
        perinucleus(bad, backend=backend)


@pytest.mark.parametrize("backend", GPU)
def test_no_rows_and_one_token(backend: str) -> None:
    assert perinucleus(torch.zeros(0, 9, device="cuda"), 0.8, 4, backend=backend).probs.shape == (0, 4)
    one = perinucleus(torch.zeros(2, 1, device="cuda"), 0.8, 1, backend=backend)
    assert one.token_ids.tolist() == [[-1], [-1]]


@pytest.mark.parametrize("backend", GPU)
def test_nothing_waits(backend: str) -> None:
    x = logits("peaky", 16)
    expected = perinucleus(x, backend=backend)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = perinucleus(x, backend=backend, checked=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same(found, expected)


@pytest.mark.parametrize("backend", GPU)
def test_a_graph_captures_it(backend: str) -> None:
    x = logits("peaky", 16)
    static = torch.zeros_like(x)
    mask = torch.ones(x.shape[1], dtype=torch.bool, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is compiled or set up at a first call is not for a graph
        perinucleus(static, 0.8, 16, mask, backend=backend, checked=False)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = perinucleus(static, 0.8, 16, mask, backend=backend, checked=False)
    for kind in KINDS:
        static.copy_(logits(kind, 16))
        graph.replay()
        assert_same(found, perinucleus(static, 0.8, 16, mask, backend=backend))


@pytest.mark.parametrize("backend", GPU)
def test_streams_at_once(backend: str) -> None:
    inputs = [logits(kind, 32) for kind in KINDS]
    expected = [perinucleus(x, backend=backend) for x in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in inputs]
    for _ in range(20):
        found = []
        for x, stream in zip(inputs, streams, strict=True):
            with torch.cuda.stream(stream):
                found.append(perinucleus(x, backend=backend, checked=False))
        torch.cuda.synchronize()
        for one, right in zip(found, expected, strict=True):
            assert_same(one, right)


@pytest.mark.parametrize("backend", GPU)
def test_it_compiles_whole(backend: str) -> None:
    x = logits("peaky", 16)
    compiled = torch.compile(
        lambda x: perinucleus(x * 2, 0.8, 16, backend=backend, checked=False), fullgraph=True, backend="aot_eager"
    )
    assert_same(compiled(x), perinucleus(x * 2, 0.8, 16, backend=backend))
    torch.library.opcheck(torch.ops.oml_fast.perinucleus.default, (x[:, :500], 0.8, 5, None, backend, 1, False))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
@pytest.mark.parametrize("backend", GPU)
def test_another_device(backend: str) -> None:
    x = logits("peaky", 4)
    found = perinucleus(x.to("cuda:1"), backend=backend)
    assert found.probs.device == torch.device("cuda:1")
    assert_same(found, perinucleus(x, backend=backend))
    assert torch.cuda.current_device() == 0


@cuda_only
def test_auto_takes_it() -> None:
    assert backends.resolve("perinucleus", "auto", "cuda") == "cuda"
