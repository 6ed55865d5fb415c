"""linear_cross_entropy against the float64 reference: values, gradients, ties, what torch.library asks, refusals."""

from __future__ import annotations

import pytest
import torch
from loss_cases import (
    CURVES,
    DTYPES,
    SHAPES,
    Case,
    check,
    check_exactly,
    cross_entropy,
    exact_cross_entropy,
    make_case,
    naive_cross_entropy,
    with_gradients,
)

from oml_fast import backends
from oml_fast.errors import BackendUnavailableError, InvalidArgumentError
from oml_fast.ops import heads, linear_cross_entropy, vocabulary_tiles

OP = torch.ops.oml_fast.linear_cross_entropy.default
BACKENDS = ("torch", "reference")


@pytest.fixture(params=["one tile", "many tiles", "many tiles, some kept"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small tests would see one tile only, and logits that are always kept."""
    if request.param != "one tile":
        monkeypatch.setattr(vocabulary_tiles, "_TILE_ELEMENTS", 1)
        monkeypatch.setattr(vocabulary_tiles, "_LEAST_COLUMNS", 64)
    if request.param == "many tiles, some kept":
        monkeypatch.setattr(heads, "_KEPT_BYTES", 2**15)
    return str(request.param)


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("curve", CURVES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape: tuple[int, ...], curve: dict[str, object], dtype: torch.dtype) -> None:
    case = make_case(*shape, dtype, **curve)
    case.ids[::3, -1] = -100
    check(cross_entropy("torch"), exact_cross_entropy, naive_cross_entropy, case)


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 4])
def test_of_equal_logits_the_lower_id_comes_first(dtype: torch.dtype, count: int) -> None:
    check_exactly(cross_entropy("torch"), exact_cross_entropy, make_case(40, 507, 16, count, dtype, whole=True))


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("backend", BACKENDS)
def test_infinite_and_huge_logits(backend: str) -> None:
    largest = torch.finfo(torch.float32).max
    case = make_case(6, 200, 8, 3, bias=True)
    assert case.bias is not None
    case.bias[:190] = -torch.inf
    case.bias[3], case.bias[150], case.bias[199] = largest, largest, -largest
    case.ids[:] = torch.tensor([[3, 150, 195], [3, 0, 199], [150, 1, 2], [199, 198, 197], [3, 4, 5], [6, 7, 8]])
    expected = exact_cross_entropy(case.to(torch.float64))
    found, gradients = with_gradients(cross_entropy(backend), case)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b.to(a.dtype)) or torch.allclose(a, b.to(a.dtype), rtol=1e-6)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert found[2][0].tolist() == [3, 150, 199] or found[2][0, :2].tolist() == [3, 150]
    # Nothing but -inf beyond the first two: the lowest ids.
    case = make_case(2, 200, 8, 5, bias=True)
    assert case.bias is not None
    case.bias[:] = -torch.inf
    case.bias[[70, 190]] = torch.tensor([1.0, 100.0])
    assert cross_entropy(backend)(case)[2].tolist() == [[190, 70, 0, 1, 2]] * 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_in_its_row(backend: str) -> None:
    case = make_case(5, 90, 8, 2)
    case.hidden[2, 3] = torch.nan
    loss, log_probs, best = cross_entropy(backend)(case)
    assert loss.isnan().tolist() == [False, False, True, False, False]
    assert log_probs.isnan().all(1).tolist() == loss.isnan().tolist()
    assert ((best >= 0) & (best < 90)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_reductions(backend: str) -> None:
    case = make_case(9, 60, 8, 2)
    case.ids[[0, 4], 1] = -100
    arguments = case.hidden, case.classifier, case.ids
    rows = linear_cross_entropy(*arguments, reduction="none", backend=backend)
    assert rows.loss[[0, 4]].tolist() == [0, 0]
    assert rows.log_probs[[0, 4]].abs().max() == 0
    torch.testing.assert_close(rows.loss, -rows.log_probs.mean(1))
    total = linear_cross_entropy(*arguments, reduction="sum", backend=backend).loss
    torch.testing.assert_close(total, rows.loss.sum())
    torch.testing.assert_close(linear_cross_entropy(*arguments, backend=backend).loss, total / 7)
    one = linear_cross_entropy(case.hidden, case.classifier, case.ids[:, 0], backend=backend)
    assert [tuple(each.shape) for each in one] == [(), (9,), (9,)]
    right = torch.nn.functional.cross_entropy(case.hidden @ case.classifier.T, case.ids[:, 0])
    torch.testing.assert_close(one.loss, right)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_to_learn(backend: str, rows: int) -> None:
    case = make_case(rows, 60, 8, 1)
    case.ids[:] = -100
    for tensor in case.model:
        tensor.requires_grad_()
    found = linear_cross_entropy(case.hidden, case.classifier, case.ids[:, 0], backend=backend)
    assert found.loss == 0
    assert found.log_probs.tolist() == [0] * rows
    found.loss.backward()
    for tensor in case.model:
        assert tensor.grad is not None
        assert tensor.grad.shape == tensor.shape
        assert not tensor.grad.any()


def test_gradients_of_float64_by_differences() -> None:
    case = make_case(3, 70, 4, 2, torch.float64, bias=True, softcap=3.0, scale=0.7)
    tensors = [tensor.requires_grad_() for tensor in case.model]
    for kept in (70, 40, 0):

        def log_probs(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor, kept: int = kept) -> torch.Tensor:
            return OP(h, w, case.ids, b, case.softcap, case.scale, -100, kept, "torch")[0]

        assert torch.autograd.gradcheck(log_probs, tensors)


def tied(case: Case, backend: str) -> torch.Tensor:
    """The gradient of a classifier that is the embedding, too."""
    weight = case.classifier.clone().requires_grad_()
    hidden = torch.tanh(weight[case.ids[:, 0]])
    linear_cross_entropy(hidden, weight, case.ids[:, 1], backend=backend).loss.backward()
    assert weight.grad is not None
    return weight.grad


def test_a_tied_classifier_gets_both_gradients() -> None:
    case = make_case(30, 90, 8, 2)
    torch.testing.assert_close(tied(case, "torch"), tied(case, "reference"))


@pytest.mark.parametrize("frozen", ["hidden", "classifier", "bias"])
def test_only_what_is_wanted_is_differentiated(frozen: str) -> None:
    case = make_case(9, 60, 8, 1, bias=True)
    for name in ("hidden", "classifier", "bias"):
        getattr(case, name).requires_grad_(name != frozen)
    whole = with_gradients(cross_entropy("torch"), case.to(torch.float32))[1]
    found = cross_entropy("torch")(case)
    ((found[0] * case.outer[0]).sum() + (found[1] * case.outer[1]).sum()).backward()
    for name, expected in zip(("hidden", "classifier", "bias"), whole, strict=True):
        grad = getattr(case, name).grad
        assert grad is None if name == frozen else torch.equal(grad, expected)


@pytest.mark.usefixtures("ways")
def test_runs_and_layouts_change_nothing_and_nothing_is_left_unwritten() -> None:
    case = make_case(20, 507, 12, 2, torch.bfloat16, bias=True)
    case.ids[3, 1] = -100
    expected = with_gradients(cross_entropy("torch"), case.to(torch.bfloat16))
    wide = torch.full((20, 30), torch.nan, dtype=torch.bfloat16)
    wide[:, 5:17] = case.hidden
    strided = Case(
        wide[:, 5:17], case.classifier.T.contiguous().T, case.bias, *[case.hidden] * 2, None, case.ids, case.outer
    )
    torch.use_deterministic_algorithms(True)  # torch.empty then gives NaN and the largest integers
    try:
        assert torch.empty(3).isnan().all()
        for each in (case.to(torch.bfloat16), strided):
            outputs, gradients = with_gradients(cross_entropy("torch"), each)
            for a, b in zip((*outputs, *gradients), (*expected[0], *expected[1]), strict=True):
                assert torch.equal(a, b)
    finally:
        torch.use_deterministic_algorithms(False)


def test_opcheck() -> None:
    case = make_case(6, 70, 8, 2, bias=True, softcap=9.0)
    case.ids[1] = -100
    for kept in (70, 0):
        for tensor in case.model:
            tensor.requires_grad_()
        arguments = (case.hidden, case.classifier, case.ids, case.bias, 9.0, 1.0, -100, kept, "torch")
        torch.library.opcheck(OP, arguments)
        log_probs, _, normaliser, products = (each.detach() for each in OP(*arguments))
        for tensor in case.model:
            tensor.requires_grad_(False)
        saved = log_probs, *arguments[:7], normaliser, products
        for wanted in ([True, True, True], [True, False, False], [False, True, False]):
            torch.library.opcheck(torch.ops.oml_fast.linear_cross_entropy_backward.default, (*saved, wanted, "torch"))


def test_compiles_whole() -> None:
    case = make_case(12, 90, 8, 1, bias=True)

    def loss(each: Case) -> torch.Tensor:
        found = linear_cross_entropy(torch.tanh(each.hidden), each.classifier, each.ids[:, 0], bias=each.bias)
        return found.loss + found.log_probs.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss, compiled):
        each = case.to(torch.float32)
        for tensor in each.model:
            tensor.requires_grad_()
        value = function(each)
        results.append((value.detach(), *torch.autograd.grad(value, each.model)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


GOOD = make_case(4, 50, 8, 2)
REFUSALS = {
    "hidden no tensor": ({"hidden": [[1.0]]}, "hidden is a list"),
    "hidden [B, T, H]": ({"hidden": GOOD.hidden[None]}, r"hidden has shape \(1, 4, 8\)"),
    "hidden of integers": ({"hidden": GOOD.hidden.long()}, r"hidden has dtype torch\.int64"),
    "hidden of float64": ({"hidden": GOOD.hidden.double()}, r"hidden has dtype torch\.float64"),
    "another hidden size": ({"classifier": GOOD.classifier[:, :7]}, r"hidden has shape \(4, 8\), classifier \(50, 7\)"),
    "no vocabulary": ({"classifier": GOOD.classifier[:0]}, r"classifier has shape \(0, 8\)"),
    "two dtypes": ({"classifier": GOOD.classifier.bfloat16()}, r"classifier has dtype torch\.bfloat16, hidden"),
    "two devices": ({"classifier": GOOD.classifier.to("meta")}, "classifier is on meta, hidden on cpu"),
    "bias too long": ({"bias": torch.zeros(51)}, r"bias has shape \(51,\), the vocabulary 50"),
    "bias of another dtype": ({"bias": torch.zeros(50).half()}, r"bias has dtype torch\.float16"),
    "targets of int32": ({"targets": GOOD.ids.int()}, r"targets is of torch\.int32.*targets\.long"),
    "targets elsewhere": ({"targets": GOOD.ids.to("meta")}, "targets is on meta"),
    "too few targets": ({"targets": GOOD.ids[:3]}, r"targets has shape \(3, 2\), hidden \(4, 8\)"),
    "no target": ({"targets": GOOD.ids[:, :0]}, r"targets has shape \(4, 0\)"),
    "three dimensions": ({"targets": GOOD.ids[None]}, r"targets has shape \(1, 4, 2\)"),
    "target too high": ({"targets": GOOD.ids.clone().fill_(50)}, "row 0 of targets holds the id 50.*0 to 49"),
    "target below 0": ({"targets": torch.tensor([1, 2, -1, 3])}, r"row 2 of targets holds the id -1.*ignore_index"),
    "softcap 0": ({"softcap": 0.0}, r"softcap is 0\.0"),
    "softcap NaN": ({"softcap": float("nan")}, "softcap is nan"),
    "scale infinite": ({"scale": float("inf")}, "scale is inf"),
    "scale below 0": ({"scale": -1.0}, r"scale is -1\.0"),
    "reduction": ({"reduction": "average"}, "reduction is 'average': use one of mean, sum, none"),
    "ignore_index": ({"ignore_index": 1.5}, r"ignore_index is 1\.5"),
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_refusals(name: str, backend: str) -> None:
    arguments, message = REFUSALS[name]
    good = {"hidden": GOOD.hidden, "classifier": GOOD.classifier, "targets": GOOD.ids, "backend": backend}
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        linear_cross_entropy(**good | arguments)
    assert "\n" not in str(caught.value)


def test_backends() -> None:
    arguments = GOOD.hidden, GOOD.classifier, GOOD.ids
    with pytest.raises(InvalidArgumentError, match="'fast' of linear_cross_entropy is unknown: use auto, reference"):
        linear_cross_entropy(*arguments, backend="fast")
    with pytest.raises(BackendUnavailableError, match="'triton' of linear_cross_entropy computes on 'cuda'"):
        linear_cross_entropy(*arguments, backend="triton")
    assert backends.OFFERED["linear_cross_entropy"] == (*reversed(BACKENDS), "triton")
