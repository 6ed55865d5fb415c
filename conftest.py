"""For every test: keeps the repository root off sys.path, and adds `pytest --benchmark`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent

# `kernels` is also the import name of a Hugging Face package that transformers looks for, and would find in our folder
# of that name. The package under test comes from the environment, not from the working directory.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="run the benchmarks, measuring, and nothing else")


@pytest.hookimpl(tryfirst=True)  # pytest-benchmark reads its options in its own pytest_configure
def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("benchmark"):
        if config.getoption("--benchmark"):
            raise pytest.UsageError("--benchmark needs pytest-benchmark: pip install 'oml_fast[bench]'")
        return
    if not config.getoption("--benchmark"):
        # Each benchmark then runs once, as a test.
        config.option.benchmark_disable = not (config.option.benchmark_only or config.option.benchmark_enable)
    elif getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("benchmarks run alone: use --benchmark without -n")
    else:
        config.option.benchmark_only = True
        if config.args_source is pytest.Config.ArgsSource.TESTPATHS:
            config.args = ["bench"]


@pytest.hookimpl(tryfirst=True)  # pytest-benchmark would list all that is not a benchmark as skipped
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--benchmark"):
        return
    others = [item for item in items if "benchmark" not in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]
