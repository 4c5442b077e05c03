# Two commands do the work, on a fresh machine too: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4

# Idle OpenMP threads sleep instead of spinning: on two cores the spinning starves the other half.
export OMP_WAIT_POLICY := passive

.PHONY: demo install test test-rest test-all bench-features lint format types clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: $(STAMP) ## generated market to margin decisions, in demo-out/
	$(BIN)/riskml demo $(DEMO_ARGS)

install: $(STAMP) ## create .venv and install (done by every other target)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "riskml needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "On Debian: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --constraint constraints.txt --build-constraint constraints.txt \
		--editable '.[train,report,sign]' --group dev
	@touch $(STAMP)

test: $(STAMP) ## the default tests (a minute or two)
	$(PYTEST) $(PYTEST_ARGS)

test-rest: $(STAMP) ## the slow tests and those on real data
	$(PYTEST) -m "slow or real_data" $(PYTEST_ARGS)

test-all: test test-rest ## every test

bench-features: $(STAMP) ## the catalogue over 20 markets x 1,000,000 minutes, beside pandas and Polars (20 min)
	$(BIN)/python training/benchmarks/bench_features.py $(BENCH_ARGS)

lint: $(STAMP) ## ruff, formatting included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## rewrite the sources in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## mypy, strict on the core and scoring tiers
	$(BIN)/mypy

clean: ## remove what tools cache and what the demo wrote; .venv stays
	rm -rf demo-out build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find riskml tests serving training -name __pycache__ -type d -prune -exec rm -rf {} +
