"""csrc/perinucleus.cu compiled for every GPU that it ships for: no spills, enough room, no contraction."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "csrc/perinucleus.cu"
NVCC = shutil.which("nvcc")
pytestmark = [
    pytest.mark.skipif(NVCC is None, reason="no nvcc"),
    pytest.mark.skipif(not SOURCE.exists(), reason="no source tree"),
]
OPTIONS = ["-std=c++17", "-O3", "-fmad=false"]
ARCHITECTURES = ("80", "90a", "100")
THREADS, BLOCKS = 512, 2  # of a multiprocessor


def compiled(out: Path, *options: str) -> str:
    """What nvcc says."""
    command = ["nvcc", *OPTIONS, *options, "-o", out, SOURCE]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_these_are_the_architectures_and_options_that_ship() -> None:
    build = (ROOT / "CMakeLists.txt").read_text()
    assert f'"{";".join(f"{name}-real" for name in ARCHITECTURES)};100-virtual"' in build
    assert "target_compile_options(gpu PRIVATE -fmad=false)" in build


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_without_spills(architecture: str, tmp_path: Path) -> None:
    code = f"arch=compute_{architecture},code=sm_{architecture}"
    said = compiled(tmp_path / "perinucleus.cubin", "-cubin", "-Xptxas=-v", "-gencode", code)
    assert len(re.findall(r"Compiling entry function", said)) == 3  # one for every dtype
    assert (
        re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
        == [("0", "0", "0")] * 3
    )
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", said)]
    assert max(registers) <= 65536 // (THREADS * BLOCKS), registers
    shared = [int(number) for number in re.findall(r"(\d+) bytes smem", said)]
    assert max(shared) <= 48 * 1024, shared


def test_no_operation_is_fused(tmp_path: Path) -> None:
    compiled(tmp_path / "perinucleus.ptx", "-ptx", "-arch=compute_80")
    text = (tmp_path / "perinucleus.ptx").read_text()
    assert "mul.rn.f32" in text or "mul.f32" in text
    assert not re.search(r"\bfma\.|\bmad\.\w*\.?f(32|64)", text)
