"""Every backend of perinucleus against the reference, and what it refuses."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from perinucleus_cases import BAND, DTYPES, KINDS, Case, check_row, large_cases, random_logits, small_cases

from oml_fast import backends
from oml_fast.errors import BackendUnavailableError, InvalidArgumentError, OmlError
from oml_fast.ops import Perinucleus, perinucleus
from oml_fast.ops.perinucleus import _BACKENDS, MAX_VOCAB

NATIVE = backends.availability("native")
native_only = pytest.mark.skipif(not NATIVE.available, reason=NATIVE.detail)
FAST = [pytest.param("native", marks=native_only), "torch"]
ALL = [*FAST, "reference"]


def run(case: Case, backend: str) -> Perinucleus:
    return perinucleus(case.logits, case.threshold, case.width, case.admissible, backend=backend)


def check(cases: Iterable[Case], backend: str) -> tuple[int, int]:
    """Checks every row of the cases; returns how many rows there were, and how many within the band."""
    rows = inside = 0
    for case in cases:
        x = case.logits.float().numpy()
        columns = [column.numpy() for column in run(case, backend)]
        for i in range(len(x)):
            inside += check_row(x[i], case, *(column[i] for column in columns))
        rows += len(x)
    return rows, inside


def assert_same(a: Perinucleus, b: Perinucleus) -> None:
    for name, left, right in zip(Perinucleus._fields, a, b, strict=True):
        assert torch.equal(left, right), name


def test_the_fast_check_accepts_the_reference() -> None:
    # Both are float64, so the band is not needed: the reference's size is the check's own.
    rows, inside = check(small_cases(1500, np.random.default_rng(1)), "reference")
    assert rows >= 1500
    assert inside < rows / 50


@pytest.mark.slow
@pytest.mark.parametrize("backend", FAST)
def test_100000_rows_agree(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(2)
    small = check(small_cases(97_900, rng), backend)
    flat = check(large_cases(500, "flat", rng), backend)
    large = check(itertools.chain(*(large_cases(320, kind, rng) for kind in KINDS if kind != "flat")), backend)
    rows, inside = (sum(counts) for counts in zip(small, flat, large, strict=True))
    with capsys.disabled():
        print(f"\n{backend}: {rows} rows agree, {large[0] + flat[0]} with V >= 128,000, {flat[0]} of them flat;")
        print(f"{inside} ({inside / rows:.2%}) decided within {BAND} of the threshold")
    assert rows >= 100_000
    assert flat[0] >= 500
    assert large[0] + flat[0] >= 2000
    assert inside < rows / 100


@pytest.mark.parametrize("backend", ALL)
def test_worked_example(backend: str) -> None:
    p = torch.tensor([[0.05, 0.5, 0.1, 0.2, 0.1, 0.05]])
    found = perinucleus(p.log(), 0.75, 3, backend=backend)
    # 0.5 + 0.2 = 0.7 < 0.75; the first of the two tokens with 0.1 reaches it and the second is a candidate.
    assert found.nucleus_size.tolist() == [3]
    assert found.nucleus_mass.item() == pytest.approx(0.8, abs=1e-6)
    assert found.token_ids.tolist() == [[4, 0, 5]]
    assert found.probs[0].tolist() == pytest.approx([0.1, 0.05, 0.05], abs=1e-6)
    assert found.short.tolist() == [False]
    assert [column.dtype for column in found] == [torch.int64, torch.float64, torch.int64, torch.float64, torch.bool]


@pytest.mark.parametrize("backend", ALL)
def test_masks_leave_less(backend: str) -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0, -torch.inf, 1.0]])
    admissible = torch.tensor([True, True, False, True, True])
    found = perinucleus(logits, 0.0, 4, admissible, backend=backend)
    assert found.token_ids.tolist() == [[1, 4, -1, -1]]
    assert found.probs[0, 2:].tolist() == [0, 0]
    assert found.short.tolist() == [True]
    nothing = perinucleus(logits, 0.0, 2, torch.zeros(5, dtype=torch.bool), backend=backend)
    assert nothing.token_ids.tolist() == [[-1, -1]]


@pytest.mark.parametrize("backend", ALL)
def test_one_token_and_no_rows(backend: str) -> None:
    one = perinucleus(torch.zeros(2, 1), 0.8, 1, backend=backend)
    assert one.token_ids.tolist() == [[-1], [-1]]
    assert one.nucleus_size.tolist() == [1, 1]
    none = perinucleus(torch.zeros(0, 9), 0.8, 4, backend=backend)
    assert [tuple(column.shape) for column in none] == [(0, 4), (0, 4), (0,), (0,), (0,)]
    assert [column.dtype for column in none] == [column.dtype for column in one]


@pytest.mark.parametrize("backend", FAST)
def test_zeros_of_either_sign_tie(backend: str) -> None:
    logits = torch.tensor([[-0.0, 0.0, -0.0, 0.0, -1.0]])
    assert perinucleus(logits, 0.1, 4, backend=backend).token_ids.tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_every_value_of_a_16_bit_dtype(backend: str, dtype: torch.dtype) -> None:
    values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    values = values[values.isfinite() & (values.abs() < 1e30)]
    shuffled = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))]
    found = perinucleus(shuffled[None], 0.0, len(values), backend=backend)
    kept = int((found.token_ids >= 0).sum())
    order = torch.sort(shuffled.float(), descending=True, stable=True).indices
    assert torch.equal(found.token_ids[0, :kept], order[1 : kept + 1])
    # Small values, far below the largest in the row above, need a row of their own.
    small = shuffled[shuffled.abs() < 100]
    found = perinucleus(small[None], 0.0, len(small) - 1, backend=backend)
    order = torch.sort(small.float() + 0.0, descending=True, stable=True).indices
    assert torch.equal(found.token_ids[0], order[1:])


@pytest.mark.parametrize("backend", FAST)
def test_many_ties_at_the_boundary(backend: str) -> None:
    logits = torch.zeros(1, 40_000)
    logits[0, ::2] = -1.0
    found = perinucleus(logits, 0.4, 5, backend=backend)
    size = found.nucleus_size.item()
    assert size == pytest.approx(0.4 * 20_000 * (1 + torch.exp(torch.tensor(-1.0)).item()), abs=2)
    assert found.token_ids[0].tolist() == [2 * (size + i) + 1 for i in range(5)]


@pytest.mark.parametrize("backend", FAST)
def test_extreme_logits(backend: str) -> None:
    largest = torch.finfo(torch.float32).max
    rows = torch.tensor(
        [
            [largest, largest, -largest, 0.0],
            [-largest, -largest, -torch.inf, -largest],
            [1e-42, 0.0, -1e-42, 1e-45],  # tokens of equal mass, told apart by their logits
            [0.0, -700.0, -744.0, -760.0],
            [513.0, 512.0, 511.0, -513.0],
        ]
    )
    assert_same(
        perinucleus(rows, 0.3, 3, backend=backend)._replace(probs=rows, nucleus_mass=rows),
        perinucleus(rows, 0.3, 3, backend="reference")._replace(probs=rows, nucleus_mass=rows),
    )


@settings(max_examples=300, deadline=None)
@given(data=st.data(), backend=st.sampled_from(["native", "torch"]))
def test_fuzz(data: st.DataObject, backend: str) -> None:
    if backend == "native" and not NATIVE.available:
        backend = "torch"
    value = st.one_of(
        st.floats(-12, 12, width=32),
        st.sampled_from([0.0, -0.0, 1.0, -torch.inf]),
        st.floats(-(2.0**127), 2.0**127, width=32),
    )
    values = data.draw(st.lists(value, min_size=1, max_size=40).filter(lambda row: max(row) > -torch.inf))
    mask = data.draw(st.none() | st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    case = Case(
        torch.tensor([values]),
        data.draw(st.floats(0, 1, exclude_max=True)),
        data.draw(st.integers(1, len(values))),
        None if mask is None else torch.tensor(mask),
        "fuzz",
    )
    check([case], backend)


def batches(vocab: int = 20_000) -> list[Case]:
    generator = torch.Generator().manual_seed(4)
    mask = torch.rand(vocab, generator=generator) < 0.3
    shapes = itertools.product(KINDS, DTYPES)
    return [Case(random_logits(kind, 6, vocab, dtype, generator), 0.8, 16, mask, kind) for kind, dtype in shapes]


@native_only
def test_instruction_sets_give_identical_results(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [run(case, "native") for case in batches()]
    for isa in backends.native().isas():
        monkeypatch.setenv("OML_FAST_CPU_ISA", isa)
        assert backends.cpu_isa() == isa
        for case, same in zip(batches(), expected, strict=True):
            assert_same(run(case, "native"), same)


@native_only
def test_threads_change_nothing() -> None:
    for case in batches():
        arguments = (case.logits, case.threshold, case.width, case.admissible)
        expected = perinucleus(*arguments, backend="native", num_threads=1)
        for threads in (2, 5, 64):
            assert_same(perinucleus(*arguments, backend="native", num_threads=threads), expected)


@pytest.mark.parametrize("backend", FAST)
def test_batch_order_and_strides_change_nothing(backend: str) -> None:
    for case in batches(20_000 if backend == "native" else 2000):
        x = case.logits
        expected = run(case, backend)
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        wide = torch.full((6, x.shape[1] + 77), torch.nan, dtype=x.dtype)
        wide[:, 5 : x.shape[1] + 5] = x
        layouts = {
            "permuted": (x[order], order),
            "strided": (wide[:, 5 : x.shape[1] + 5], torch.arange(6)),
            "transposed": (x.t().contiguous().t(), torch.arange(6)),
            "single": (x[2:3], torch.tensor([2])),
            "expanded": (x[1:2].expand(4, -1), torch.tensor([1, 1, 1, 1])),
        }
        for logits, rows in layouts.values():
            again = perinucleus(logits, case.threshold, case.width, case.admissible, backend=backend)
            assert_same(again, Perinucleus(*(column[rows] for column in expected)))


@pytest.mark.parametrize("backend", FAST)
def test_nothing_is_left_unwritten(backend: str) -> None:
    case = batches()[0]
    mask = torch.zeros(20_000, dtype=torch.bool)
    mask[::2000] = True
    expected = perinucleus(case.logits, 0.8, 16, mask, backend=backend)
    assert expected.short.all()
    torch.use_deterministic_algorithms(True)  # torch.empty then gives NaN and the largest integers
    try:
        assert torch.empty(3).isnan().all()
        assert_same(perinucleus(case.logits, 0.8, 16, mask, backend=backend), expected)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_bad_rows_are_named(backend: str, value: float) -> None:
    logits = torch.randn(4, 700)
    if value == -torch.inf:
        logits[2] = value
    else:
        logits[2, 699] = value
    with pytest.raises(InvalidArgumentError, match=r"^row 2 of logits holds "):
        perinucleus(logits, backend=backend)


def test_gradients_are_not_asked_for() -> None:
    found = perinucleus(torch.randn(2, 50, requires_grad=True), backend="torch")
    assert not found.probs.requires_grad


GOOD = torch.randn(2, 50)
REFUSALS = {
    "no tensor": ({"logits": [[1.0, 2.0]]}, "is a list"),
    "one dimension": ({"logits": GOOD[0]}, r"shape \(50,\)"),
    "three dimensions": ({"logits": GOOD[None]}, r"shape \(1, 2, 50\)"),
    "float64": ({"logits": GOOD.double()}, r"dtype torch\.float64"),
    "integers": ({"logits": GOOD.long()}, r"dtype torch\.int64"),
    "no vocabulary": ({"logits": GOOD[:, :0]}, r"shape \(2, 0\)"),
    "huge vocabulary": ({"logits": torch.zeros(1).expand(1, MAX_VOCAB + 1)}, r"1 to 1048576 tokens"),
    "threshold 1": ({"threshold": 1.0}, r"threshold is 1\.0"),
    "threshold below 0": ({"threshold": -0.1}, r"threshold is -0\.1"),
    "threshold NaN": ({"threshold": float("nan")}, "threshold is nan"),
    "threshold text": ({"threshold": "0.8"}, "threshold is '0.8'"),
    "no candidates": ({"num_candidates": 0}, "num_candidates is 0, the vocabulary has 50"),
    "too many candidates": ({"num_candidates": 51}, "num_candidates is 51, the vocabulary has 50"),
    "candidates not whole": ({"num_candidates": 2.5}, r"num_candidates is 2\.5"),
    "mask too long": ({"admissible": torch.ones(51, dtype=torch.bool)}, r"shape \(51,\), the vocabulary 50"),
    "mask per row": ({"admissible": torch.ones(2, 50, dtype=torch.bool)}, r"shape \(2, 50\)"),
    "mask of numbers": ({"admissible": torch.ones(50)}, r"admissible is of torch\.float32"),
    "mask a list": ({"admissible": [True] * 50}, "admissible is of list"),
    "mask elsewhere": ({"admissible": torch.ones(50, dtype=torch.bool, device="meta")}, "on meta, logits on cpu"),
    "no threads": ({"num_threads": 0}, "num_threads is 0"),
    "unknown backend": ({"backend": "fast"}, "backend 'fast' of perinucleus is unknown"),
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_refusals(name: str, backend: str) -> None:
    arguments, message = REFUSALS[name]
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        perinucleus(**{"logits": GOOD, "backend": backend} | arguments)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, OmlError | ValueError)


def test_native_refuses_other_devices() -> None:
    with pytest.raises(BackendUnavailableError, match="computes on 'cpu', the tensor is on 'meta'"):
        perinucleus(GOOD.to("meta"), backend="native")


def test_the_table_of_backends_is_complete() -> None:
    assert tuple(_BACKENDS) == backends.OFFERED["perinucleus"]
