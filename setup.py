"""Drives CMake for `oml_fast._native`; everything else stands in pyproject.toml.

Three variables decide: OML_FAST_NATIVE=0 builds without a compiler (the package then computes with torch alone);
OML_FAST_REQUIRE_NATIVE=1, for CI, refuses a build without native code whatever else is set; and OML_FAST_CUDA=0 builds
without CUDA kernels, 1 not without them, auto (the default) with them where a CUDA compiler is found.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
WAY_OUT = "install a C++17 compiler (g++ or clang++), or set OML_FAST_NATIVE=0 to build without native code"


def _native_wanted() -> bool:
    native = os.environ.get("OML_FAST_NATIVE", "1")
    required = os.environ.get("OML_FAST_REQUIRE_NATIVE", "0")
    for name, value in (("OML_FAST_NATIVE", native), ("OML_FAST_REQUIRE_NATIVE", required)):
        if value not in ("0", "1"):
            raise SetupError(f"{name} is {value!r}: set it to 0 or 1")
    if _cuda() == "1" and native == "0":
        raise SetupError("OML_FAST_NATIVE=0 contradicts OML_FAST_CUDA=1: unset one of them")
    if required == "1" and native == "0":
        raise SetupError("OML_FAST_NATIVE=0 contradicts OML_FAST_REQUIRE_NATIVE=1: unset one of them")
    return native == "1"


def _cuda() -> str:
    wanted = os.environ.get("OML_FAST_CUDA", "auto")
    if wanted not in ("0", "1", "auto"):
        raise SetupError(f"OML_FAST_CUDA is {wanted!r}: set it to 0, 1 or auto")
    return wanted


def _tool(name: str, directory_attribute: str) -> str | None:
    """The tool from the pip package of that name, else from PATH."""
    if importlib.util.find_spec(name):
        directory = getattr(importlib.import_module(name), directory_attribute)
        executable = shutil.which(name, path=str(directory))
        if executable:
            return executable
    return shutil.which(name)


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        cmake = _tool("cmake", "CMAKE_BIN_DIR")
        if cmake is None:
            raise SetupError("cmake was not found: `pip install cmake`, or set OML_FAST_NATIVE=0")
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build_dir = Path(self.build_temp).resolve() / "cmake"
        build_dir.mkdir(parents=True, exist_ok=True)
        try:
            # --fresh: an earlier isolated build left paths into an environment that is gone.
            subprocess.run([cmake, "--fresh", "-S", ROOT, "-B", build_dir, *self._definitions(target)], check=True)
            subprocess.run([cmake, "--build", build_dir, "--parallel"], check=True)
        except (OSError, subprocess.CalledProcessError):
            raise SetupError(f"oml_fast: the native build failed, for the reason above: {WAY_OUT}") from None

    def _definitions(self, target: Path) -> list[str]:
        import pybind11

        definitions = [
            f"-DOML_FAST_MODULE={target.name}",
            f"-DOML_FAST_MODULE_DIR={target.parent}",
            f"-DOML_FAST_CUDA={_cuda()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
        ]
        ninja = _tool("ninja", "BIN_DIR")
        if ninja:
            definitions += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        return definitions


setup(
    # `kernels` is also the import name of a Hugging Face package: ours is mapped into oml_fast, never on sys.path.
    packages=[*find_packages(include=["oml_fast", "oml_fast.*"]), "oml_fast.kernels"],
    package_dir={"oml_fast.kernels": "kernels"},
    package_data={
        "oml_fast": ["py.typed"],
        "oml_fast.plan": ["*.json"],
        "oml_fast.report": ["*.json", "*.j2", "*.css"],
    },
    ext_modules=[Extension("oml_fast._native", sources=[])] if _native_wanted() else [],
    cmdclass={"build_ext": CMakeBuild},
    zip_safe=False,
)
