"""What the root conftest.py adds to pytest, tried on a small project that has a copy of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FILES = {
    "pytest.ini": (
        "[pytest]\npython_files = test_*.py bench_*.py\npython_functions = test_* bench_*\ntestpaths = tests bench\n"
    ),
    "kernels/__init__.py": "",
    "tests/test_it.py": (
        "import importlib.util, sys\n"
        "def test_root_is_not_importable(pytestconfig):\n"
        "    assert str(pytestconfig.rootpath) not in sys.path and '' not in sys.path\n"
        "    spec = importlib.util.find_spec('kernels')\n"
        "    assert spec is None or not spec.origin.startswith(str(pytestconfig.rootpath))\n"
    ),
    "bench/bench_it.py": "def bench_it(benchmark):\n    benchmark(lambda: None)\ndef test_beside():\n    pass\n",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    shutil.copy(ROOT / "conftest.py", tmp_path)
    return tmp_path


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True)


def test_plain_pytest_runs_each_benchmark_once(project: Path) -> None:
    done = run(project)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
    assert "Rounds" not in done.stdout


def test_plain_pytest_in_parallel(project: Path) -> None:
    done = run(project, "-n", "2")
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
    assert "warning" not in done.stdout


def test_benchmark_runs_benchmarks_and_nothing_else(project: Path) -> None:
    done = run(project, "--benchmark", "-v")
    assert done.returncode == 0, done.stdout
    assert "bench_it PASSED" in done.stdout
    assert "1 passed, 1 deselected" in done.stdout
    assert "Rounds" in done.stdout
    assert "test_it" not in done.stdout


def test_other_benchmark_options_keep_their_meaning(project: Path) -> None:
    done = run(project, "--benchmark-only", "--benchmark-min-rounds=2")
    assert done.returncode == 0, done.stdout
    assert "1 passed, 2 skipped" in done.stdout


@pytest.mark.parametrize("workers", [("-n", "2"), ("-n", "auto"), ("-n1",), ("--numprocesses=2",)])
def test_benchmarks_run_alone(project: Path, workers: tuple[str, ...]) -> None:
    done = run(project, "--benchmark", *workers)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.strip() == "ERROR: benchmarks run alone: use --benchmark without -n"
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize("limit", ["timeout", "faulthandler_timeout"])
def test_a_test_that_hangs_is_named_and_the_others_go_on(project: Path, limit: str) -> None:
    """With the repository's own settings, but for the time: the first reaches Python's code, the second all."""
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert 300 <= own["timeout"] < own["faulthandler_timeout"] <= 900
    settings = [f"{limit}=3", f"faulthandler_exit_on_timeout={own['faulthandler_exit_on_timeout']}"]
    (project / "tests/test_hang.py").write_text("import time\ndef test_hang():\n    time.sleep(600)\n")
    done = run(project, "-n", "2", *(word for setting in settings for word in ("-o", setting)))
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert "FAILED tests/test_hang.py::test_hang" in done.stdout
    assert "1 failed, 3 passed" in done.stdout
    assert "test_hang.py" in (done.stderr if limit == "faulthandler_timeout" else done.stdout)
