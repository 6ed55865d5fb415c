"""Every backend of anchored_adamw against the reference, the reference against float64, and what is refused."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from anchored_adamw_cases import LAYOUTS, RATES, Tensors, after, assert_same, case
from torch._subclasses.fake_tensor import FakeTensorMode

from oml_fast import backends
from oml_fast.errors import InvalidArgumentError
from oml_fast.ops import anchored_adamw
from oml_fast.ops.anchored_adamw import _BACKENDS, DTYPES
from oml_fast.ops.philox import element_words, philox4x32
from oml_fast.ops.reference import adamw_scalars

NATIVE = backends.availability("native")
native_only = pytest.mark.skipif(not NATIVE.available, reason=NATIVE.detail)
FAST = [pytest.param("native", marks=native_only), "torch"]
SIZES = (1, 7, 8, 9, 1023, 65_537)


def isas(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for isa in backends.native().isas():
        monkeypatch.setenv("OML_FAST_CPU_ISA", isa)
        assert backends.cpu_isa() == isa
        yield isa


@native_only
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_has_the_reference_bits(layout: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, extremes in itertools.product(SIZES, (False, True)):
        tensors = case(n, layout, dtype, n, extremes=extremes)
        right = after(tensors, "reference", seed=n, offset=n)
        for isa in isas(monkeypatch):
            assert_same(after(tensors, "native", seed=n, offset=n), right, (n, extremes, isa))


@native_only
@pytest.mark.parametrize("layout", ["compact", torch.bfloat16], ids=str)
def test_native_has_the_reference_bits_at_any_rate(layout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = case(1023, layout, torch.float32, extremes=True)
    for step, pull in itertools.product((1, 2, 10**6, 2**40), (0.0, 1e-9, 0.3, 1 - 2**-24, 1.0)):
        for rates in ({}, {"betas": (0.0, 0.0), "eps": 1e-30}, {"betas": (0.95, 0.99999), "learning_rate": 0.0}):
            numbers = {"step": step, "pull": pull, "seed": 2**63 - 1} | rates
            right = after(tensors, "reference", **numbers)
            for isa in isas(monkeypatch):
                assert_same(after(tensors, "native", **numbers), right, (numbers, isa))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_is_not_finite_spreads_alike(backend: str, layout: Any) -> None:
    tensors = case(1023, layout, torch.float32)
    gradient = tensors["gradient"]
    assert gradient is not None
    gradient[::5], gradient[1::7], gradient[2::9] = torch.inf, -torch.inf, torch.nan
    found = after(tensors, backend)
    assert_same(found, after(tensors, "reference"))
    moment = found["first_moment"]
    assert moment is not None
    assert moment[2::9].isnan().all()
    assert moment.isinf().any()
    assert moment.isfinite().any()


@native_only
@pytest.mark.parametrize("layout", ["compact", torch.bfloat16], ids=str)
def test_threads_change_nothing(layout: Any) -> None:
    tensors = case(5 * 2**16 - 3, layout, torch.bfloat16)
    one = after(tensors, "native", num_threads=1)
    for threads in (2, 3, 4):
        assert_same(after(tensors, "native", num_threads=threads), one)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_torch_is_the_reference_in_chunks(layout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("oml_fast.ops.anchored_adamw")  # its name in the package is the function's
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 100)
    tensors = case(1023, layout, torch.float16)
    assert_same(after(tensors, "torch", offset=5), after(tensors, "reference", offset=5))


@native_only
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_weights_are_rounded_as_torch_rounds(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    low = 16 if dtype == torch.bfloat16 else 13  # bits that go
    near_ties = torch.arange(2 ** (32 - low))[:, None] * 2**low + torch.tensor([0, 2 ** (low - 1)])
    near_ties = (near_ties[..., None] + torch.tensor([-1, 0, 1])).flatten()
    bits = torch.cat([near_ties, torch.arange(0, 2**32, 65_521)])
    values = (bits - 2**31).clamp(min=-(2**31), max=2**31 - 1).int().view(torch.float32)
    values = values[values.isfinite()] + 0.0  # the base's 0 makes every zero positive
    zeros = torch.zeros_like(values)
    for _ in isas(monkeypatch):
        tensors: Tensors = dict.fromkeys(("gradient", "first_moment", "second_moment"), zeros)
        tensors |= {"change": values, "base": zeros.to(dtype), "weight": zeros.to(dtype)}
        found = after(tensors, "native", learning_rate=0.0, pull=0.0)
        assert_same({"weight": found["weight"]}, {"weight": values.to(dtype)})


def test_the_reference_does_what_adamw_and_a_pull_do_in_float64() -> None:
    source = torch.Generator().manual_seed(0)
    steps, n, pull = 300, 512, 0.003
    gradients = torch.randn(steps, n, generator=source) * torch.logspace(-6, 2, n)
    changes = {}
    for dtype in (torch.float64, torch.float32):
        parameter = torch.zeros(n, dtype=dtype, requires_grad=True)
        optimizer = torch.optim.AdamW([parameter], lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, foreach=False)
        for gradient in gradients:
            parameter.grad = gradient.to(dtype)
            optimizer.step()
            with torch.no_grad():
                parameter.mul_(1 - pull)
        changes[dtype] = parameter.detach().double()
    change, m, v = torch.zeros(3, n)
    for step, gradient in enumerate(gradients, 1):
        anchored_adamw(
            change, gradient, m, v, step=step, learning_rate=1e-3, pull=pull, betas=(0.9, 0.99), backend="reference"
        )
    exact = changes[torch.float64]
    naive = (changes[torch.float32] - exact).abs().max()
    assert (change.double() - exact).abs().max() <= naive + 1e-8
    assert exact.abs().max() > 0.01


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_the_pull_is_from_the_new_weight(backend: str) -> None:
    """In the first step AdamW's update is the learning rate times the gradient's sign; then a quarter is taken off."""
    change, gradient = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([3.0, -0.02, 5.0])
    base = torch.tensor([1.0, 2.0, -1.0])
    m, v, weight = torch.zeros(3), torch.zeros(3), torch.full((3,), torch.nan)
    rates: dict[str, Any] = {"step": 1, "learning_rate": 0.1, "pull": 0.25, "backend": backend}
    anchored_adamw(change, gradient, m, v, base, weight, **rates)
    torch.testing.assert_close(change, torch.tensor([0.4, 0.6, -0.1]) * 0.75)
    torch.testing.assert_close(weight, base + change)
    torch.testing.assert_close(m, gradient / 10)
    torch.testing.assert_close(v, gradient.square() / 1000)
    halves = [x.bfloat16() for x in (torch.zeros(3), torch.zeros(3), base, base + torch.tensor([0.5, 0.5, 0.0]))]
    anchored_adamw(None, gradient, *halves, **rates)
    torch.testing.assert_close(halves[3].float(), weight, rtol=2**-7, atol=0)


def test_the_numbers_of_a_step_are_exact_float32() -> None:
    numbers = adamw_scalars(2, 1e-3, 0.1, (0.9, 0.999), 1e-8)
    exact = (0.9, 0.1, 0.999, 0.001, 1e-3 / 0.19, 1 / math.sqrt(1 - 0.998001), 1e-8, 0.9)
    assert list(numbers) == pytest.approx(exact, rel=2**-24)
    assert torch.tensor(numbers, dtype=torch.float64).float().double().tolist() == list(numbers)
    late = adamw_scalars(10**9, 1e-3, 0.1, (0.9, 0.999), 1e-8)
    assert (late.step_size, late.root_factor) == (torch.tensor(1e-3).item(), 1.0)


def test_philox_gives_the_known_answers() -> None:
    """Of kat_vectors in Random123, the authors' own library."""
    answers = {
        (0,) * 6: "5f6fb709 0d893f64 4f121f81 4f730a48",
        (0xFFFFFFFF,) * 6: "5207ddc2 45165e59 4d8ee751 8c52f662",
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0): "4dfccaba 190a87f0 c47362ba b6b5242a",
    }
    for (*counter, key0, key1), answer in answers.items():
        words = philox4x32(tuple(torch.tensor(word) for word in counter), (key0, key1))
        assert " ".join(f"{int(word):08x}" for word in words) == answer
    zero = torch.zeros((), dtype=torch.int64)
    ten = philox4x32((zero,) * 4, (0, 0), rounds=10)
    assert [int(word) for word in ten] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_every_element_seed_and_step_has_words_of_its_own() -> None:
    here = torch.device("cpu")
    draws = [element_words(first, 1000, *numbers, here) for first in (0, 2**33 - 500) for numbers in ((1, 0), (1, 1))]
    draws += [element_words(0, 1000, 2, 0, here), element_words(0, 1000, 1 + 2**32, 2**32, here)]
    words = torch.stack([word for pair in draws for word in pair])
    assert len(words.unique()) > words.numel() - 10  # 12,000 words of 32 bits: two collide with a chance of 2 %
    assert (words >= 0).all()
    assert (words < 2**32).all()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("value", [1.0, -2.375, 3e-5, 1e-39])
def test_stochastic_rounding_is_without_bias(backend: str, value: float) -> None:
    """Of equal elements the share that is rounded up is the value's place between its neighbours; none tells another.

    By Hoeffding's inequality one of these 6 shares, or of their 15 products, strays further than `most` with a chance
    below 21e-9.
    """
    pairs = 2**17
    most = math.sqrt(math.log(2e9) / (2 * pairs))
    x = torch.full((2 * pairs,), value, dtype=torch.bfloat16)
    tensors: Tensors = {"change": None, "gradient": torch.zeros(2 * pairs), "base": 0 * x, "weight": x}
    tensors |= {"first_moment": x, "second_moment": x.abs()}
    # No learning rate: the weight shrinks by the pull, the moments by their betas.
    found = after(tensors, backend, learning_rate=0.0, pull=0.0007, betas=(0.9, 0.999))
    start, ups, shares = float(x[0]), [], []
    exact = {"weight": start * (1 - 0.0007), "first_moment": start * 0.9, "second_moment": abs(start) * 0.999}
    for name, right in exact.items():
        rounded = found[name]
        assert rounded is not None
        low, high = rounded.double().unique().tolist()
        assert low < right < high
        up = (rounded.double() == high).double().view(pairs, 2)  # both of a pair draw from one call of Philox
        share = (right - low) / (high - low)
        assert (up.mean(0) - share).abs().max() < most + 2**-16  # float32 has 16 bits more
        ups += [up[:, 0], up[:, 1]]
        shares += [share, share]
    for (one, p), (other, q) in itertools.combinations(zip(ups, shares, strict=True), 2):
        assert abs((one * other).mean() - p * q) < most + 2**-14


@pytest.mark.parametrize("backend", FAST)
def test_small_steps_are_not_lost(backend: str) -> None:
    """400 steps of 2^-12 of a weight, which rounding to nearest would lose one by one, and moments that keep pace.

    The tolerances are more than five deviations of the mean.
    """
    n = 1024
    m, v, base, weight = (torch.full((n,), x, dtype=torch.bfloat16) for x in (0.0, 0.0, 1.0, 1.0))
    gradient = torch.full((n,), -1.0)
    for step in range(1, 401):
        anchored_adamw(None, gradient, m, v, base, weight, step=step, learning_rate=2**-12, backend=backend)
    assert weight.double().mean().item() == pytest.approx(1 + 400 / 2**12, abs=5e-3)
    assert m.double().mean().item() == pytest.approx(-1, abs=2e-3)
    assert v.double().mean().item() == pytest.approx(1 - 0.999**400, abs=4e-3)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("offset", [0, 1, 2**32 - 500, 2**33 - 501, 2**62])
def test_shards_are_parts_of_the_whole(backend: str, offset: int) -> None:
    tensors = case(3001, "compact", torch.bfloat16)
    whole = after(tensors, backend, offset=offset, seed=9)
    assert_same(whole, after(tensors, "reference", offset=offset, seed=9))
    cuts = [0, 1, 2, 999, 2001, 3001]
    parts = [
        after({k: None if x is None else x[a:b] for k, x in tensors.items()}, backend, offset=offset + a, seed=9)
        for a, b in itertools.pairwise(cuts)
    ]
    joined = {k: None if x is None else torch.cat([p[k] for p in parts]) for k, x in whole.items()}  # type: ignore[misc]
    assert_same(joined, whole)


@pytest.mark.parametrize("backend", FAST)
def test_any_shape_and_views_of_more(backend: str) -> None:
    tensors = case(3000, "compact", torch.float32)
    flat = after(tensors, backend)
    cube = after({k: None if x is None else x.view(10, 20, 15) for k, x in tensors.items()}, backend)
    assert_same({k: None if x is None else x.view(-1) for k, x in cube.items()}, flat)
    shared = {k: None if x is None else torch.full((5000,), 7, dtype=x.dtype) for k, x in tensors.items()}
    views = {k: None if x is None else x[1001:4001] for k, x in shared.items()}  # aligned to nothing
    for name, view in views.items():
        if view is not None:
            view.copy_(tensors[name])  # type: ignore[arg-type]
    anchored_adamw(**views, backend=backend, **RATES)  # type: ignore[arg-type]
    assert_same(views, flat)
    for whole in shared.values():
        assert whole is None or ((whole[:1001] == 7).all() and (whole[4001:] == 7).all())


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_nothing_at_all(backend: str) -> None:
    for layout in LAYOUTS:
        after(case(0, layout, torch.float32), backend)


def test_parameters_are_changed_in_place_and_autograd_is_told() -> None:
    tensors = case(100, torch.bfloat16, torch.float32)
    right = after(tensors, "reference")
    parameter = torch.nn.Parameter(tensors.pop("change"))  # type: ignore[arg-type]
    before = parameter._version
    anchored_adamw(parameter, **tensors, **RATES)  # type: ignore[arg-type]
    assert torch.equal(parameter.detach(), right["change"])  # type: ignore[arg-type]
    assert parameter._version > before
    assert parameter.requires_grad
    with torch.inference_mode():
        again = case(100, torch.bfloat16, torch.float32)
        anchored_adamw(**again, **RATES)  # type: ignore[arg-type]
    assert torch.equal(again["weight"], right["weight"])  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_torch_accepts_it_as_an_op(layout: Any) -> None:
    tensors = case(64, layout, torch.bfloat16)
    order = ("change", "gradient", "first_moment", "second_moment", "base", "weight")
    arrays = tuple(tensors.get(name) for name in order)
    torch.library.opcheck(
        torch.ops.oml_fast.anchored_adamw.default, (*arrays, 1e-3, 0.1, 0.9, 0.999, 1e-8, 4, 0, 0, "auto", 1)
    )


@pytest.mark.parametrize("layout", [torch.bfloat16, "compact"], ids=str)
def test_it_compiles_whole(layout: Any) -> None:
    tensors = case(64, layout, torch.float32)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def take(tensors: Tensors, step: int) -> None:
        anchored_adamw(**tensors, **RATES | {"step": step})  # type: ignore[arg-type]

    for number in range(1, 4):
        right = after(tensors, "auto", step=number)
        take(tensors, number)
        assert_same(tensors, right)


def test_fake_tensors_are_let_through() -> None:
    with FakeTensorMode() as mode:
        tensors = {name: None if x is None else mode.from_tensor(x) for name, x in GOOD.items()}
        anchored_adamw(**tensors, **RATES)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match="change has dtype"):
            anchored_adamw(**tensors | {"change": tensors["base"]}, **RATES)  # type: ignore[arg-type]


GOOD = case(12, torch.bfloat16, torch.float32)
COMPACT = case(12, "compact", torch.float32)
GRID = torch.zeros(12, 2)
REFUSALS: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "gradient no tensor": (GOOD, {"gradient": [0.0] * 12}, "gradient is a list"),
    "no gradient": (GOOD, {"gradient": None}, "gradient is a NoneType"),
    "no moment": (GOOD, {"second_moment": None}, "second_moment is a NoneType"),
    "gradient float64": (GOOD, {"gradient": torch.zeros(12).double()}, r"gradient has dtype torch\.float64"),
    "change bfloat16": (
        GOOD,
        {"change": torch.zeros(12).bfloat16()},
        r"change has dtype torch\.bfloat16: with a change",
    ),
    "moment bfloat16": (GOOD, {"first_moment": torch.zeros(12).half()}, r"first_moment has dtype torch\.float16"),
    "weight integers": (GOOD, {"weight": torch.zeros(12).int()}, r"weight has dtype torch\.int32"),
    "weight unlike base": (GOOD, {"weight": torch.zeros(12)}, r"base has dtype torch\.bfloat16, weight torch\.float32"),
    "base alone": (GOOD, {"weight": None}, "base and weight go together"),
    "weight alone": (GOOD, {"base": None}, "base and weight go together"),
    "compact float32": (COMPACT, {"weight": torch.zeros(12)}, r"weight has dtype torch\.float32: without a change"),
    "compact moment": (COMPACT, {"second_moment": torch.zeros(12)}, r"it must be torch\.bfloat16\."),
    "compact no base": (COMPACT, {"base": None}, "compact layout: it needs both base and weight"),
    "shape": (GOOD, {"first_moment": torch.zeros(13)}, r"first_moment has shape \(13,\), gradient \(12,\)"),
    "same count": (GOOD, {"change": torch.zeros(3, 4)}, r"change has shape \(3, 4\), gradient \(12,\)"),
    "strides": (GOOD, {"change": GRID[:, 0]}, r"change has shape \(12,\) and strides \(2,\): it must be contiguous"),
    "transposed": (GOOD, {"change": GRID.T}, r"shape \(2, 12\) and strides \(1, 2\)"),
    "device": (
        GOOD,
        {"base": torch.zeros(12, dtype=torch.bfloat16, device="meta")},
        "base is on meta, gradient on cpu",
    ),
    "step 0": (GOOD, {"step": 0}, "step is 0"),
    "step a float": (GOOD, {"step": 1.0}, r"step is 1\.0"),
    "learning rate below 0": (GOOD, {"learning_rate": -1e-3}, r"learning_rate is -0\.001"),
    "learning rate NaN": (GOOD, {"learning_rate": math.nan}, "learning_rate is nan"),
    "pull above 1": (GOOD, {"pull": 1.5}, r"pull is 1\.5"),
    "pull below 0": (GOOD, {"pull": -0.1}, r"pull is -0\.1"),
    "beta 1": (GOOD, {"betas": (0.9, 1.0)}, r"betas is \(0\.9, 1\.0\)"),
    "one beta": (GOOD, {"betas": (0.9,)}, r"betas is \(0\.9,\)"),
    "eps 0": (GOOD, {"eps": 0.0}, r"eps is 0\.0"),
    "eps text": (GOOD, {"eps": "1e-8"}, "eps is '1e-8'"),
    "seed below 0": (COMPACT, {"seed": -1}, "seed is -1"),
    "seed too large": (COMPACT, {"seed": 2**63}, "seed is 9223372036854775808"),
    "offset below 0": (COMPACT, {"offset": -1}, "offset is -1, with 12 elements"),
    "offset too large": (COMPACT, {"offset": 2**63 - 12}, "all indices below"),
    "no threads": (GOOD, {"num_threads": 0}, "num_threads is 0"),
    "unknown backend": (GOOD, {"backend": "fast"}, "backend 'fast' of anchored_adamw is unknown"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str) -> None:
    tensors, wrong, message = REFUSALS[name]
    copies = {k: None if x is None else x.clone() for k, x in tensors.items()}
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        anchored_adamw(**copies | RATES | wrong)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert_same(copies, tensors)


@pytest.mark.parametrize("backend", ["auto", "reference", "torch"])
def test_tensors_that_share_memory_are_refused(backend: str) -> None:
    memory = torch.zeros(20)
    for a, b in (("change", "gradient"), ("change", "first_moment"), ("first_moment", "second_moment")):
        overlapping = GOOD | {a: memory[:12], b: memory[8:]}
        with pytest.raises(InvalidArgumentError, match=f"{a} and {b} share memory"):
            anchored_adamw(**overlapping, backend=backend, **RATES)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="base and weight share memory"):
        anchored_adamw(**GOOD | {"weight": GOOD["base"]}, backend=backend, **RATES)  # type: ignore[arg-type]
    one = torch.randn(12).bfloat16()
    after(GOOD | {"gradient": one, "base": one}, backend)  # two that are only read
    beside = torch.zeros(24)
    anchored_adamw(**GOOD | {"change": beside[:12], "gradient": beside[12:]}, **RATES)  # type: ignore[arg-type]


def test_the_table_of_backends_is_complete() -> None:
    assert tuple(_BACKENDS) == backends.OFFERED["anchored_adamw"]
