# Two commands for a fresh machine: `make demo` and `make test`. The rest serves those who work on SpecLRM.

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
LOCK ?= locks/cpu.txt
# Processes in which the tests run: one a core for real engines; one more for the others, of which many only wait.
WORKERS ?= logical
FAST_WORKERS ?= $(shell $(PYTHON) -c 'import os; print(os.cpu_count() + 1)')
# Where the index in use has no CPU build of torch: the address of PyTorch's own CPU index.
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
READY := $(VENV)/.installed-$(shell cat $(LOCK) pyproject.toml | sha256sum | cut -c1-16)

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types test-fast test-engine test-models test-services test-slow soak bench locks clean

help: ## Show the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY):
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed; set PYTHON=/path/to/python3.11." >&2; exit 2; }
	@echo "Installing the locked packages into $(VENV) (about two minutes, once)..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --no-deps --require-hashes $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r $(LOCK) 2>&1 \
		| { grep -v '^WARNING: Location' || true; }
	@$(PIP) install --no-deps --no-build-isolation --editable . 2>&1 | { grep -v '^WARNING: Location' || true; }
	@$(BIN)/python -c "import vllm.version, speclrm.api" || { echo "The installation is not whole; see above." >&2; exit 1; }
	@rm -f $(VENV)/.installed-* && touch $(READY)

setup: $(READY) ## Install everything into .venv

demo: setup ## A draft and a target solve problems together, beside the target alone
	@$(BIN)/speclrm demo

test: setup lint types test-fast test-engine ## Lint, format, types, all tests that need no real weights

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup
	@mkdir -p build/link && ln -sfn ../.. build/link/speclrm
	@$(BIN)/pyright --pythonpath $(BIN)/python

test-fast: setup ## Tests on scripted engines
	@$(BIN)/python -m pytest -q -m "not engine and not models and not services and not slow" -n $(FAST_WORKERS) --dist worksteal

test-engine: setup ## Tests on the real vLLM with tiny random models
	@$(BIN)/python -m pytest -q -m "engine and not slow" -n $(WORKERS) --dist loadfile

test-models: setup ## Tests on real weights
	@$(BIN)/python -m pytest -q -m models

test-services: setup ## Tests with Ray, which this installs
	@$(PIP) install --no-deps --require-hashes -r locks/services.txt
	@$(BIN)/python -m pytest -q -m services

test-slow: setup ## How often intervals hold the truth, in thousands of draws; rarer failures of real engines
	@$(BIN)/python -m pytest -q -m slow

soak: setup ## Simulated faults for SIMULATED (10) minutes, then random attacks for MINUTES (60), from number SEED (0) on
	@$(BIN)/python -m tests.simulation --seeds 100000 --seed $(or $(SEED),0) --minutes $(or $(SIMULATED),10) --jobs $(or $(JOBS),2)
	@$(BIN)/python tests/soak.py --minutes $(or $(MINUTES),60) --seed $(or $(SEED),0) $(if $(JOBS),--jobs $(JOBS))

bench: setup ## The runtime's own cost, answers under load, real models beside bare vLLM
	@$(BIN)/speclrm bench overhead
	@$(BIN)/speclrm bench load
	@$(BIN)/speclrm bench real

locks: ## Make the lock files anew (needs uv)
	uv pip compile pyproject.toml --extra cpu --extra tasks --extra parquet --extra convert --extra dev --override locks/cpu-overrides.txt \
		--generate-hashes --no-annotate --no-header --python-version 3.11 -o locks/cpu.txt
	echo 'vllm==0.32.0' | uv pip compile pyproject.toml --extra cuda --extra tasks --extra parquet --extra convert --extra dev -c - \
		--generate-hashes --no-annotate --no-header --python-version 3.11 --python-platform x86_64-manylinux_2_28 -o locks/cuda.txt

clean: ## Remove what was made here
	rm -rf $(VENV) build .pytest_cache .ruff_cache
