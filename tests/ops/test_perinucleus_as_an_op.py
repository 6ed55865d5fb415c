"""perinucleus as an op of torch: opcheck, whole graphs, fake tensors, and rows that cannot be used left unchecked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from oml_fast import backends
from oml_fast.errors import BackendUnavailableError, InvalidArgumentError
from oml_fast.ops import Perinucleus, perinucleus

NATIVE = backends.availability("native")
native_only = pytest.mark.skipif(not NATIVE.available, reason=NATIVE.detail)
BACKENDS = ["reference", "torch", pytest.param("native", marks=native_only)]
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(3, 60, generator=GENERATOR) * 3
MASK = torch.rand(60, generator=GENERATOR) < 0.7


def assert_same(a: Perinucleus, b: Perinucleus) -> None:
    for name, left, right in zip(Perinucleus._fields, a, b, strict=True):
        assert torch.equal(left, right), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [3, 0])
def test_torch_accepts_it(backend: str, masked: bool, rows: int) -> None:
    arguments = (LOGITS[:rows], 0.8, 5, MASK if masked else None, backend, 1, True)
    torch.library.opcheck(torch.ops.oml_fast.perinucleus.default, arguments)


@pytest.fixture
def compiler() -> Iterator[None]:
    """torch.compile without what other tests compiled of the same code."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_compiles_whole(backend: str, checked: bool) -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def most_probable(logits: torch.Tensor, mask: torch.Tensor) -> tuple[Perinucleus, torch.Tensor]:
        found = perinucleus(logits * 2, 0.5, 4, mask, backend=backend, checked=checked)
        return found, found.token_ids[:, 0]

    for logits in (LOGITS, LOGITS[:2]):  # the second with sizes that are no constants
        found, first = most_probable(logits, MASK)
        assert_same(found, perinucleus(logits * 2, 0.5, 4, MASK, backend=backend))
        assert torch.equal(first, found.token_ids[:, 0])


@pytest.mark.usefixtures("compiler")
def test_a_compiled_graph_still_checks_rows() -> None:
    compiled = torch.compile(lambda x: perinucleus(x, 0.5, 4).token_ids, fullgraph=True, backend="aot_eager")
    compiled(LOGITS)
    with pytest.raises(InvalidArgumentError, match=r"^row 1 of logits holds NaN"):
        compiled(LOGITS.index_fill(0, torch.tensor([1]), torch.nan))


@pytest.mark.parametrize("backend", BACKENDS)
def test_unchecked_rows_hold_nothing(backend: str) -> None:
    bad = torch.cat((LOGITS, LOGITS))
    bad[1, 59], bad[3, 0], bad[4] = torch.nan, torch.inf, -torch.inf
    good = torch.tensor([0, 2, 5])
    found = perinucleus(bad, 0.8, 5, MASK, backend=backend, checked=False)
    assert_same(Perinucleus(*(column[good] for column in found)), perinucleus(bad[good], 0.8, 5, MASK, backend=backend))
    for row in (1, 3, 4):
        assert found.token_ids[row].tolist() == [-1] * 5
        assert found.probs[row].tolist() == [0] * 5
        assert (found.nucleus_size[row], found.nucleus_mass[row], found.short[row]) == (0, 0, True)
    with pytest.raises(InvalidArgumentError, match=r"^row 1 of logits holds NaN"):
        perinucleus(bad, 0.8, 5, MASK, backend=backend)


def test_unchecked_arguments_are_still_checked() -> None:
    with pytest.raises(InvalidArgumentError, match="threshold is 1"):
        perinucleus(LOGITS, 1.0, 5, checked=False)
    with pytest.raises(InvalidArgumentError, match=r"dtype torch\.float64"):
        perinucleus(LOGITS.double(), 0.5, 5, checked=False)


@pytest.mark.parametrize("rows", [3, 0])
def test_shapes_without_data(rows: int) -> None:
    logits = LOGITS[:rows]
    expected = perinucleus(logits, 0.8, 5)
    with FakeTensorMode() as mode:
        fake = perinucleus(mode.from_tensor(logits), 0.8, 5, mode.from_tensor(MASK))
    meta = perinucleus(logits.to("meta"), 0.8, 5)
    for found in (fake, meta):
        assert [(c.shape, c.dtype) for c in found] == [(c.shape, c.dtype) for c in expected]
    assert {column.device.type for column in meta} == {"meta"}


def test_no_gradient_passes() -> None:
    found = perinucleus(LOGITS.clone().requires_grad_(), 0.8, 5)
    assert not any(column.requires_grad for column in found)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_gpu_backend_that_is_not_here_says_why(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part = backends._PARTS.get(backend, backend)
    monkeypatch.setitem(backends._CHECKS, part, lambda: (False, "it is not in this build"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with FakeTensorMode():
        logits = torch.empty(2, 60, device="cuda")
        with pytest.raises(
            BackendUnavailableError,
            match=rf"'{backend}' of perinucleus is not available: it is not in this build\. Use backend='torch'",
        ):
            perinucleus(logits, backend=backend)
        assert perinucleus(logits, backend="torch").token_ids.shape == (2, 16)
