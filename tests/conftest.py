"""What all tests share: a tiny model, the bundled one, one thread for torch, and what `make test-all` alone runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest
import torch
from tiny import write_tiny_model

from oml_fast import settings
from oml_fast.errors import BackendUnavailableError
from oml_fast.models import LanguageModel, bundled_model, load

# Tests may run in several processes; the default of one thread per core then costs more than it brings.
torch.set_num_threads(1)


# What must be installed or started first. With OML_FAST_TEST_ALL=1, which `make test-all` sets, these tests run, and
# fail where it is missing.
INSTALLED_FIRST = {"vllm": "real vLLM", "ray": "Ray", "postgres": "a PostgreSQL server"}
TEST_ALL = os.environ.get("OML_FAST_TEST_ALL") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest first: started last, one of them would leave all other workers idle."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in [] if TEST_ALL else items:
        for name, what in INSTALLED_FIRST.items():
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=f"needs {what}: make test-all"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model on disk, with a chat template and no BOS. Copy it before you change it."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def bos_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with a tokenizer that begins every text with BOS."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny-bos", bos=True)


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> LanguageModel:
    """`tiny_folder` loaded. For tests that train nothing and patch nothing in it."""
    return load(tiny_folder, device="cpu")


@pytest.fixture
def fresh_model(tiny_folder: Path) -> LanguageModel:
    """`tiny_folder` loaded for one test alone, to be trained or patched."""
    return load(tiny_folder, device="cpu")


@pytest.fixture(scope="session")
def bundled_folder() -> Path:
    """The bundled real model on disk, converted on first use; skips where it is not installed."""
    try:
        return bundled_model(settings.cache_dir())
    except BackendUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL server of our own. For tests marked `postgres`; most want `postgres_url`."""
    binaries = postgres.find_binaries()
    if binaries is None:
        pytest.fail("no PostgreSQL server found: install it (Debian: postgresql), or run make test-all as root")
    with postgres.running_server(binaries) as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """postgresql://user:password@127.0.0.1:port/name of a new, empty database. For tests marked `postgres`."""
    return postgres.fresh_database(postgres_server)
