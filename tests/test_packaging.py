"""What is built, what is in it, and what installing it does to an environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest

import oml_fast

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    *("CMakeLists.txt", "LICENSE", "MANIFEST.in", "conftest.py", "constraints.txt", "constraints-vllm.txt"),
    *("pyproject.toml", "setup.py"),
)
OPTIONAL_SOURCES = ("CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "README.md", "SECURITY.md")
FOLDERS = ("bench", "csrc", "docs", "kernels", "oml_fast", "tests")

pytestmark = pytest.mark.slow
has_compiler = any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))


def run(command: Sequence[str | Path], cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OML_FAST_", "PYTHONPATH"))}
    return subprocess.run(command, cwd=cwd, env=kept | env, capture_output=True, text=True)


def build(source: Path, out: Path, *what: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Without isolation, so that nothing is downloaded."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", "--outdir", out, *what]
    return run(command, source, **env)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: building writes into the source tree."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("these tests run in the source tree")
    copy = tmp_path_factory.mktemp("source")
    skipped = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", ".*")
    for name in FOLDERS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=skipped)
    for name in SOURCES + OPTIONAL_SOURCES:
        if name in SOURCES or (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="session")
def sdist(source: Path) -> Path:
    done = build(source, source / "dist", "--sdist")
    assert done.returncode == 0, done.stdout + done.stderr
    return next((source / "dist").glob("*.tar.gz"))


@pytest.fixture(scope="session")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.iterdir())


@pytest.fixture(scope="session")
def wheel(unpacked: Path) -> Path:
    """Built from the unpacked sdist, so that the sdist is known to hold all that is needed."""
    if not has_compiler:
        pytest.skip("no C++ compiler")
    done = build(unpacked, unpacked / "dist", "--wheel", OML_FAST_REQUIRE_NATIVE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    return next((unpacked / "dist").glob("*.whl"))


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_sdist_holds_the_sources(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in archive.getnames()}
    assert names >= {*SOURCES, "PKG-INFO", "csrc/perinucleus.h", "csrc/bindings.cpp", "kernels/primitives.py"}
    assert names >= {"csrc/perinucleus.cu", "csrc/perinucleus_block.cuh", "tests/ops/cuda_on_cpu/cuda_runtime.h"}
    assert names >= {"tests/test_packaging.py", "tests/ops/perinucleus_cases.py", "bench/shapes.py"}
    assert names >= {"oml_fast/py.typed", "oml_fast/ops/perinucleus.py"}
    assert not [name for name in names if name.endswith((".so", ".pyc")) or "__pycache__" in name]


def test_wheel_has_one_top_level(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in names_in(wheel)}
    assert tops == {"oml_fast", f"oml_fast-{oml_fast.__version__}.dist-info"}


def test_wheel_holds_every_module(wheel: Path) -> None:
    names = set(names_in(wheel))
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "oml_fast").rglob("*.py")}
    kernels = {f"oml_fast/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    assert names >= modules | kernels | {"oml_fast/py.typed"}
    assert [name for name in names if name.startswith("oml_fast/_native.") and name.endswith(".so")]
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        folder = next(name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name)
        fields = archive.read(f"{folder}/METADATA").decode()
        commands = archive.read(f"{folder}/entry_points.txt").decode()
    assert f"Version: {oml_fast.__version__}\n" in fields
    assert "License-Expression: Apache-2.0\n" in fields
    assert "Requires-Python: >=3.11\n" in fields
    assert "oml-fast = oml_fast.cli:main" in commands
    required = [line for line in fields.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    # Lower bounds only: a pin or an upper bound would move somebody's torch.
    assert not [line for line in required if "==" in line or "<" in line or "~=" in line]


def test_wheel_works_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel]
    done = run(pip, tmp_path)
    assert done.returncode == 0, done.stderr
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import importlib.util, oml_fast, oml_fast.kernels, oml_fast._native, torch\n"
        "from oml_fast.ops import perinucleus\n"
        f"assert oml_fast._native.__file__.startswith({str(target)!r})\n"
        f"assert oml_fast.kernels.__file__.startswith({str(target)!r})\n"
        "perinucleus(torch.randn(2, 99), backend='native')\n"
        "spec = importlib.util.find_spec('kernels')\n"
        f"assert spec is None or not spec.origin.startswith({str(target)!r})\n"
    )
    # -S -E would hide torch too: instead drop the editable install's finder.
    code = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if '__editable__' not in repr(f)]\n" + code
    done = run([sys.executable, "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr


def test_builds_without_a_compiler_on_request(unpacked: Path, tmp_path: Path) -> None:
    done = build(unpacked, tmp_path, "--wheel", OML_FAST_NATIVE="0", CXX="/nonexistent/c++")
    assert done.returncode == 0, done.stdout + done.stderr
    built = next(tmp_path.glob("*.whl"))
    assert built.name.endswith("-py3-none-any.whl")
    assert not [name for name in names_in(built) if name.endswith(".so")]
    assert "oml_fast/kernels/__init__.py" in names_in(built)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"CXX": "/nonexistent/c++"}, "set OML_FAST_NATIVE=0 to build without native code"),
        ({"OML_FAST_NATIVE": "0", "OML_FAST_REQUIRE_NATIVE": "1"}, "contradicts OML_FAST_REQUIRE_NATIVE=1"),
        ({"OML_FAST_NATIVE": "yes"}, "OML_FAST_NATIVE is 'yes': set it to 0 or 1"),
        ({"OML_FAST_NATIVE": "0", "OML_FAST_CUDA": "1"}, "OML_FAST_NATIVE=0 contradicts OML_FAST_CUDA=1"),
        ({"OML_FAST_CUDA": "yes"}, "OML_FAST_CUDA is 'yes': set it to 0, 1 or auto"),
        ({"OML_FAST_CUDA": "1", "CUDACXX": "/nonexistent/nvcc"}, "but no CUDA compiler was found"),
    ],
    ids=["no compiler", "contradiction", "bad value", "no native for CUDA", "bad CUDA value", "no CUDA compiler"],
)
def test_build_fails_loudly(unpacked: Path, tmp_path: Path, env: dict[str, str], message: str) -> None:
    if "CUDACXX" in env and not has_compiler:
        pytest.skip("no C++ compiler")
    copy = tmp_path / "copy"
    shutil.copytree(unpacked, copy, ignore=shutil.ignore_patterns("build", "dist"))
    done = build(copy, tmp_path / "out", "--wheel", **env)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert not list(tmp_path.glob("out/*.whl"))


def would_install(wheel: Path, extra: str, cwd: Path, site: Path) -> set[str]:
    """What pip would install or change for this wheel, with no index to take anything else from."""
    report = cwd / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--quiet", "--report", report]
    done = run([*command, f"{wheel}{extra}"], cwd, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    return {entry["metadata"]["name"].lower() for entry in json.loads(report.read_text())["install"]}


def test_installing_moves_no_torch(wheel: Path, tmp_path: Path) -> None:
    assert would_install(wheel, "", tmp_path, tmp_path) <= {"oml_fast", "oml-fast"}


def test_installing_moves_no_vllm(wheel: Path, tmp_path: Path) -> None:
    if "vllm" not in {distribution.name for distribution in metadata.distributions()}:
        # vLLM pins its torch exactly: a stand-in with such a pin is enough to ask pip.
        folder = tmp_path / "vllm-0.32.0.dist-info"
        folder.mkdir()
        pins = "".join(f"Requires-Dist: {name}=={metadata.version(name)}\n" for name in ("torch", "transformers"))
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n{pins}")
        (folder / "RECORD").write_text("")
    assert would_install(wheel, "[vllm]", tmp_path, tmp_path) <= {"oml_fast", "oml-fast"}
