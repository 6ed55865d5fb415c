"""fingerprint_loss against the float64 reference: values, gradients, refusals."""

from __future__ import annotations

import pytest
import torch
from loss_cases import (
    CURVES,
    DTYPES,
    SHAPES,
    TARGET,
    Case,
    check,
    check_exactly,
    exact_fingerprint,
    fingerprint,
    make_case,
    naive_fingerprint,
    with_gradients,
)

from oml_fast import backends
from oml_fast.errors import BackendUnavailableError, InvalidArgumentError
from oml_fast.ops import fingerprint_loss, heads, reference_losses, vocabulary_tiles

OP = torch.ops.oml_fast.fingerprint_loss.default
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


def loss_of(case: Case, backend: str = "torch", **target: float) -> torch.Tensor:
    tensors = case.hidden, case.classifier, case.base_hidden, case.base_classifier, case.ids
    biases = {"bias": case.bias, "base_bias": case.base_bias}
    return fingerprint_loss(*tensors, backend=backend, **TARGET | target, **biases, **case.curve).loss


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("curve", CURVES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (40, 300, 64, 0)], ids=str)
def test_values_and_gradients(shape: tuple[int, ...], curve: dict[str, object], dtype: torch.dtype) -> None:
    check(fingerprint("torch"), exact_fingerprint, naive_fingerprint, make_case(*shape, dtype, **curve))


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_base_of_another_size_and_dtype(dtype: torch.dtype) -> None:
    case = make_case(30, 300, 40, 2, dtype, base_size=70)
    check(fingerprint("torch"), exact_fingerprint, naive_fingerprint, case)
    mixed = Case(case.hidden, case.classifier, None, case.base_hidden.float(), case.base_classifier.float(), None,
                 case.ids, case.outer)  # fmt: skip
    found = fingerprint("torch")(mixed)[0]
    torch.testing.assert_close(found, fingerprint("reference")(mixed)[0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("cap", [0.3, 0.55, 0.9, 1.0])
def test_what_the_target_is(backend: str, count: int, cap: float) -> None:
    case = make_case(20, 90, 16, count)
    target = {"margin": 1.5, "step": 0.3, "cap": cap}
    base = (case.base_hidden @ case.base_classifier.T).log_softmax(1)
    log_q = reference_losses.raised(base, case.ids, **target).log_softmax(1)
    others = base.scatter(1, case.ids, -torch.inf)
    first = log_q.gather(1, case.ids)
    rise = first[:, 0] - log_q.gather(1, others.argmax(1, keepdim=True))[:, 0]
    assert (first[:, 0].exp() <= cap + 1e-5).all()
    assert (((rise - 1.5).abs() < 1e-4) | ((first[:, 0].exp() - cap).abs() < 1e-5)).all()
    torch.testing.assert_close(first[:, :-1] - first[:, 1:], torch.full((20, count - 1), 0.3), rtol=0, atol=1e-4)
    moved = (log_q - base)[others.isfinite()].view(20, -1)
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved), rtol=0, atol=1e-4)
    log_p = (case.hidden @ case.classifier.T).log_softmax(1)
    right = torch.nn.functional.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1)
    torch.testing.assert_close(loss_of(case, backend, **target), right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_response_is_kl_to_the_base(backend: str) -> None:
    case = make_case(20, 90, 16, 0)
    log_p, log_b = ((h @ case.classifier.T).log_softmax(1) for h in (case.hidden, case.base_hidden))
    right = torch.nn.functional.kl_div(log_p, log_b, reduction="none", log_target=True).sum(1)
    torch.testing.assert_close(loss_of(case, backend), right, rtol=1e-3, atol=1e-6)
    found = fingerprint_loss(
        case.hidden, case.classifier, case.hidden, case.classifier, case.ids, margin=1.0, backend=backend
    )
    assert found.loss.abs().max() < 1e-6
    assert found.log_probs.shape == (20, 0)
    assert found.best.tolist() == log_p.argmax(1, keepdim=True).tolist()


def test_small_differences_are_seen() -> None:
    case = make_case(16, 2000, 64, 0)
    base = case.hidden + 1e-3 * case.base_hidden
    found = fingerprint_loss(case.hidden, case.classifier, base, case.classifier, case.ids, margin=1.0, backend="torch")
    doubles = [tensor.double() for tensor in (case.hidden, case.classifier, base, case.classifier)]
    right = reference_losses.fingerprint_loss(*doubles, case.ids, 1.0, 0.5, 0.9, None, None, None, 1.0)
    assert right.loss.max() < 1e-4
    # Of the sums of several nats that a KL is the difference of, float32 keeps 1e-6 at best.
    assert (found.loss - right.loss).abs().max() < 1e-6


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [0, 1, 4])
def test_of_equal_logits_the_lower_id_comes_first(dtype: torch.dtype, count: int) -> None:
    case = make_case(40, 507, 16, count, dtype, whole=True)
    check_exactly(fingerprint("torch"), exact_fingerprint, case)
    check(fingerprint("torch"), exact_fingerprint, naive_fingerprint, case)


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [0, 2])
def test_ids_that_both_models_rule_out(backend: str, count: int) -> None:
    case = make_case(6, 200, 8, count, bias=True)
    assert case.bias is not None
    assert case.base_bias is not None
    for bias in (case.bias, case.base_bias):
        bias[10:150] = -torch.inf
    case.ids[:] = torch.tensor([3, 170][:count])
    case.base_bias[160] = -torch.inf
    right, right_gradients = with_gradients(exact_fingerprint, case.to(torch.float64))
    found, gradients = with_gradients(fingerprint(backend), case.to(torch.float32))
    assert right[0].isfinite().all()
    for a, b in zip((*found[:2], *gradients), (*right[:2], *right_gradients), strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-4, atol=1e-5)
    case.bias[5] = -torch.inf  # what the base still has
    assert fingerprint(backend)(case)[0].tolist() == [torch.inf] * 6


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("backend", BACKENDS)
def test_huge_logits(backend: str) -> None:
    case = make_case(4, 200, 8, 2, bias=True)
    assert case.bias is not None
    assert case.base_bias is not None
    case.ids[:] = torch.tensor([20, 7])
    for huge in (1e9, 1e37):
        for bias in (case.bias, case.base_bias):
            bias[[20, 130]] = huge
            bias[140] = -huge
        right = exact_fingerprint(case.to(torch.float64))[0]
        found = fingerprint(backend)(case)[0]
        # Beyond 1e16 a margin is lost in the rounding of float64; q is then that of the reference to a tenth.
        torch.testing.assert_close(found, right.float(), rtol=1e-5 if huge < 1e16 else 0.1, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_in_its_row(backend: str) -> None:
    case = make_case(5, 90, 8, 2)
    case.hidden[2, 3] = torch.nan
    case.base_hidden[4, 0] = torch.nan
    case.base_hidden[2] = 0
    loss, log_probs, best = fingerprint(backend)(case)
    assert loss.isnan().tolist() == [False, False, True, False, True]
    assert log_probs.isnan().all(1).tolist() == [False, False, True, False, False]
    assert ((best >= 0) & (best < 90)).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [0, 3])
def test_no_rows(backend: str, count: int) -> None:
    case = make_case(0, 60, 8, count)
    found, gradients = with_gradients(fingerprint(backend), case)
    assert [tuple(each.shape) for each in found] == [(0,), (0, count), (0, max(count, 1))]
    for tensor, gradient in zip(case.model, gradients, strict=True):
        assert gradient.shape == tensor.shape
        assert not gradient.any()


@pytest.mark.parametrize("count", [0, 2])
def test_gradients_of_float64_by_differences(count: int) -> None:
    case = make_case(3, 70, 4, count, torch.float64, bias=True, softcap=3.0, scale=0.7)
    tensors = [tensor.requires_grad_() for tensor in case.model]
    base = case.base_hidden, case.base_classifier, case.ids
    for kept in (70, 0):

        def outputs(
            h: torch.Tensor, w: torch.Tensor, b: torch.Tensor, kept: int = kept
        ) -> tuple[torch.Tensor, torch.Tensor]:
            curve = case.softcap, case.scale
            return OP(h, w, *base, b, case.base_bias, *TARGET.values(), *curve, kept, "torch")[:2]

        assert torch.autograd.gradcheck(outputs, tensors)


def test_the_base_gets_no_gradient() -> None:
    for backend in BACKENDS:
        case = make_case(9, 60, 8, 1)
        tensors = case.hidden, case.classifier, case.base_hidden, case.base_classifier
        for tensor in tensors:
            tensor.requires_grad_()
        loss_of(case, backend).sum().backward()
        assert [tensor.grad is None for tensor in tensors] == [False, False, True, True]


@pytest.mark.parametrize("frozen", ["hidden", "classifier", "bias"])
def test_only_what_is_wanted_is_differentiated(frozen: str) -> None:
    case = make_case(9, 60, 8, 1, bias=True)
    whole = with_gradients(fingerprint("torch"), case.to(torch.float32))[1]
    for name in ("hidden", "classifier", "bias"):
        getattr(case, name).requires_grad_(name != frozen)
    found = fingerprint("torch")(case)
    ((found[0] * case.outer[0]).sum() + (found[1] * case.outer[1]).sum()).backward()
    for name, expected in zip(("hidden", "classifier", "bias"), whole, strict=True):
        grad = getattr(case, name).grad
        assert grad is None if name == frozen else torch.equal(grad, expected)


@pytest.mark.usefixtures("ways")
def test_runs_change_nothing_and_nothing_is_left_unwritten() -> None:
    case = make_case(20, 507, 12, 2, torch.bfloat16, bias=True)
    expected = with_gradients(fingerprint("torch"), case.to(torch.bfloat16))
    torch.use_deterministic_algorithms(True)  # torch.empty then gives NaN and the largest integers
    try:
        assert torch.empty(3).isnan().all()
        outputs, gradients = with_gradients(fingerprint("torch"), case.to(torch.bfloat16))
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip((*outputs, *gradients), (*expected[0], *expected[1]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kept", [70, 40, 0])
def test_opcheck(kept: int) -> None:
    case = make_case(6, 70, 8, 2, bias=True, softcap=9.0)
    for tensor in case.model:
        tensor.requires_grad_()
    base = case.base_hidden, case.base_classifier, case.ids
    biases = case.bias, case.base_bias
    arguments = (case.hidden, case.classifier, *base, *biases, *TARGET.values(), 9.0, 1.0, kept, "torch")
    torch.library.opcheck(OP, arguments)
    loss, log_probs, _, *saved = (each.detach() for each in OP(*arguments))
    for tensor in case.model:
        tensor.requires_grad_(False)
    backward = torch.ops.oml_fast.fingerprint_loss_backward.default
    for wanted in ([True, True, True], [False, True, False]):
        inputs = case.hidden, case.classifier, *base, *biases, 9.0, 1.0, *saved, wanted, "torch"
        torch.library.opcheck(backward, (loss, log_probs, *inputs))


def test_compiles_whole() -> None:
    case = make_case(12, 90, 8, 2)
    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss_of, compiled):
        each = case.to(torch.float32)
        for tensor in each.model:
            tensor.requires_grad_()
        value = function(each).square().sum()
        results.append((value.detach(), *torch.autograd.grad(value, each.model)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


GOOD = make_case(4, 50, 8, 2)
REFUSALS = {
    "hidden [B, T, H]": ({"hidden": GOOD.hidden[None]}, r"hidden has shape \(1, 4, 8\)"),
    "hidden of float64": ({"hidden": GOOD.hidden.double()}, r"hidden has dtype torch\.float64"),
    "base no tensor": ({"base_hidden": None}, "base_hidden is a NoneType"),
    "base of another size": ({"base_classifier": GOOD.base_classifier[:, :5]}, r"base_hidden has shape \(4, 8\), base"),
    "base of two dtypes": ({"base_hidden": GOOD.base_hidden.half()}, r"base_classifier has dtype torch\.float32"),
    "base elsewhere": (
        {"base_hidden": GOOD.base_hidden.to("meta"), "base_classifier": GOOD.base_classifier.to("meta")},
        "base_hidden is on meta, hidden on cpu",
    ),
    "fewer base rows": ({"base_hidden": GOOD.base_hidden[:3]}, "base_hidden has 3 rows, hidden 4"),
    "another vocabulary": (
        {"base_classifier": GOOD.base_classifier[:49]},
        "base_classifier has 49 rows, classifier 50",
    ),
    "base bias": ({"base_bias": torch.zeros(3)}, r"base_bias has shape \(3,\)"),
    "responses [N]": ({"responses": GOOD.ids[:, 0]}, r"responses has shape \(4,\)"),
    "fewer responses": ({"responses": GOOD.ids[:3]}, r"responses has shape \(3, 2\)"),
    "nothing but responses": ({"responses": torch.arange(50).expand(4, 50)}, r"responses has shape \(4, 50\)"),
    "responses of floats": ({"responses": GOOD.ids.float()}, r"responses is of torch\.float32"),
    "response too high": ({"responses": torch.full((4, 1), 50)}, "row 0 of responses holds the id 50"),
    "response below 0": ({"responses": torch.full((4, 1), -100)}, "row 0 of responses holds the id -100"),
    "a response twice": (
        {"responses": torch.tensor([[1, 2, 3], [1, 2, 4], [7, 4, 7], [1, 2, 3]])},
        "row 2 of responses holds the id 7 twice",
    ),
    "margin NaN": ({"margin": float("nan")}, "margin is nan"),
    "margin text": ({"margin": "2.5"}, "margin is '2.5'"),
    "step below 0": ({"step": -0.1}, r"step is -0\.1"),
    "cap 1.1": ({"cap": 1.1}, r"cap is 1\.1: it must be a probability"),
    "cap nan": ({"cap": float("nan")}, "cap is nan"),
    "cap 0": ({"cap": 0.0}, r"cap is 0\.0"),
    "softcap": ({"softcap": -3.0}, r"softcap is -3\.0"),
    "scale": ({"scale": True}, "scale is True"),
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_refusals(name: str, backend: str) -> None:
    arguments, message = REFUSALS[name]
    good = {"hidden": GOOD.hidden, "classifier": GOOD.classifier, "base_hidden": GOOD.base_hidden}
    good |= {"base_classifier": GOOD.base_classifier, "responses": GOOD.ids, "margin": 2.5, "backend": backend}
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        fingerprint_loss(**good | arguments)
    assert "\n" not in str(caught.value)


def test_backends() -> None:
    with pytest.raises(InvalidArgumentError, match="'fast' of fingerprint_loss is unknown: use auto, reference"):
        loss_of(GOOD, "fast")
    with pytest.raises(BackendUnavailableError, match="'triton' of fingerprint_loss computes on 'cuda'"):
        loss_of(GOOD, "triton")
    assert backends.OFFERED["fingerprint_loss"] == (*reversed(BACKENDS), "triton")
