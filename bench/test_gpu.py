"""gpu.sh without a GPU: what it takes for usable, and that it goes on after a failure and says so."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASH = shutil.which("bash") or "bash"


def told(function: str, argument: str) -> tuple[int, str]:
    """Exit status and output of one function of the script."""
    asked = [BASH, "-c", 'source bench/gpu.sh; "$@"', "bash", function, argument]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize(
    ("capability", "kernel"),
    [
        *(("8.0", "sm_80"), ("8.9", "sm_80"), ("9.0", "sm_90a"), ("10.0", "sm_100"), ("10.3", "sm_100")),
        *(("12.0", "PTX of sm_100"), ("7.5", None), ("6.1", None), ("", None)),
    ],
)
def test_compute_capabilities(capability: str, kernel: str | None) -> None:
    assert told("kernel_for", capability) == ((0, kernel) if kernel else (1, ""))


@pytest.mark.parametrize(("cuda", "driver"), [("12.8", "525"), ("13.0", "580"), ("11.8", None), ("", None)])
def test_drivers(cuda: str, driver: str | None) -> None:
    assert told("oldest_driver", cuda) == ((0, driver) if driver else (1, ""))


def run(tmp_path: Path, smi: str, *parts: str) -> subprocess.CompletedProcess[str]:
    """The script where nvidia-smi and nvcc say this; nothing else of CUDA is there."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("nvidia-smi", smi), ("nvcc", "Cuda compilation tools, release 13.0, V13.0.48"), ("python", "")):
        (commands / name).write_text(f"#!/bin/sh\necho '{text}'\n")
        (commands / name).chmod(0o755)
    environment = {"PATH": f"{commands}:/usr/bin:/bin", "OUT": str(tmp_path / "out"), "PYTHON": "python"}
    return subprocess.run([BASH, "bench/gpu.sh", *parts], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("smi", "why"),
    [
        ("NVIDIA H100, 550.54.15, 9.0", "driver 550.54.15 is too old for CUDA 13.0: 580 or newer"),
        ("Tesla T4, 580.10, 7.5", "no kernel is built for compute capability 7.5"),
    ],
)
def test_machines_that_cannot_run_it_are_refused(tmp_path: Path, smi: str, why: str) -> None:
    done = run(tmp_path, smi, "check")
    assert done.returncode == 1
    assert why in done.stderr
    assert "check" in done.stdout
    assert "failed (1)" in done.stdout


def test_a_machine_that_can_passes(tmp_path: Path) -> None:
    done = run(tmp_path, "NVIDIA H100, 580.159.04, 9.0", "check")
    assert done.returncode == 0, done.stderr
    assert "runs sm_90a" in (tmp_path / "out" / "gpu.log").read_text()


def test_it_goes_on_after_a_failure(tmp_path: Path) -> None:
    done = run(tmp_path, "Tesla T4, 580.10, 7.5", "check", "profile")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("check")
    assert lines[1].startswith("ncu")
    assert "not installed" in lines[1]


def test_unknown_parts_are_refused() -> None:
    done = subprocess.run([BASH, "bench/gpu.sh", "everything"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no part everything: use check build" in done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    done = subprocess.run(["shellcheck", "bench/gpu.sh"], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stdout
