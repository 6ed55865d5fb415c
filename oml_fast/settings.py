"""Every environment variable that this package reads. None changes a result, only how it is computed, or from what.

OML_FAST_CPU_ISA   baseline, v2, v3 or v4: compute native ops with at most these instructions (default: the CPU's best).
OML_FAST_CACHE     where the converted bundled model is kept (default: oml_fast below XDG_CACHE_HOME or ~/.cache).
OML_FAST_DATA      folder of public data that `evaluate` reads (docs/evaluation.md); --data names another.
OML_FAST_REGISTRY  path or URL of the registry (docs/registry.md); --registry names another.
OML_FAST_PERMISSIONS  the settings of a permission gate, a YAML file (docs/permissions.md).
OML_FAST_API_KEY   the API key of an endpoint under verification; never an option, which others could see.
OML_FAST_SIGNING_PASSPHRASE  of an encrypted signing key; without it a terminal is asked.
TRITON_INTERPRET   1: Triton's own switch, with which its kernels run without a GPU.
VLLM_USE_RUST_FRONTEND, VLLM_API_KEY  vLLM's own switches, with which `oml-fast serve` does not start it; nor with any
                   CUSTOM_FASTAPI_MIDDLEWARE_ of SageMaker's, which would stand before the gate.
PROMETHEUS_MULTIPROC_DIR  set by vLLM where several processes serve: their counters are one.
RANK, WORLD_SIZE, LOCAL_RANK  set by torchrun: which share of a full check or of an embedding is this process's, and
                   which GPU of its machine.

The build has three more, which setup.py reads: OML_FAST_NATIVE, OML_FAST_REQUIRE_NATIVE and OML_FAST_CUDA.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .errors import InvalidArgumentError

CPU_ISAS = ("baseline", "v2", "v3", "v4")


def cpu_isa() -> str:
    """The instruction set asked for with OML_FAST_CPU_ISA, or "" for the CPU's best."""
    value = os.environ.get("OML_FAST_CPU_ISA", "")
    if value and value not in CPU_ISAS:
        raise InvalidArgumentError(f"OML_FAST_CPU_ISA is {value!r}: use one of {', '.join(CPU_ISAS)}, or unset it.")
    return value


def triton_interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on any device."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def cache_dir() -> Path:
    """The folder for what can be made again at any time."""
    if own := os.environ.get("OML_FAST_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oml_fast"


def data_dir() -> Path | None:
    """The folder of public data that OML_FAST_DATA names, or None."""
    own = os.environ.get("OML_FAST_DATA")
    return Path(own) if own else None


def registry_url() -> str | None:
    """The registry that OML_FAST_REGISTRY names, or None."""
    return os.environ.get("OML_FAST_REGISTRY") or None


def permissions_file() -> Path | None:
    """The settings of the permission gate that OML_FAST_PERMISSIONS names, or None."""
    own = os.environ.get("OML_FAST_PERMISSIONS")
    return Path(own) if own else None


def vllm_switches() -> list[str]:
    """Those of vLLM's own variables that are set and would bypass or block a permission gate."""
    off = ("", "0", "false", "False")
    found = [name for name in ("VLLM_USE_RUST_FRONTEND", "VLLM_API_KEY") if os.environ.get(name, "") not in off]
    return [*found, *(name for name in os.environ if name.startswith("CUSTOM_FASTAPI_MIDDLEWARE_"))]


def counters_are_shared() -> bool:
    """Whether several processes keep counters of prometheus_client together."""
    return bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))


def api_key() -> str | None:
    """The API key of the endpoint under verification, or None."""
    return os.environ.get("OML_FAST_API_KEY") or None


def signing_passphrase() -> str | None:
    """The passphrase of an encrypted signing key, or None."""
    return os.environ.get("OML_FAST_SIGNING_PASSPHRASE") or None


def shard() -> tuple[int, int] | None:
    """(i, n): this process is the i-th of n that torchrun started, counted from 1; None where it started none."""
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return (int(rank) + 1, int(size)) if rank.isdigit() and size.isdigit() and int(rank) < int(size) else None


def local_rank() -> int:
    """This process's number on its machine, which is that of its GPU, where torchrun started it; else 0."""
    value = os.environ.get("LOCAL_RANK", "")
    return int(value) if value.isdigit() else 0


def read_config(path: str | Path) -> dict[str, Any]:
    """A YAML file of options as a flat mapping. InvalidArgumentError where it is none."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidArgumentError(f"cannot read the configuration {path}: {error.strerror}.") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidArgumentError(
            f"the configuration {path} is no valid YAML: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise InvalidArgumentError(f"the configuration {path} must be a mapping of option names to values.")
    return values
