# `make` alone lists the targets. Each does its own set-up: a .venv with the pinned versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
DEMO ?= demo

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast lint format typecheck docs docs-serve bench ci clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY) ## Make .venv with the package and its development extras

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## Split, train, pseudolabel and eval on the embedded dataset, in the folder demo/
	$(BIN)/python tools/demo.py $(DEMO)

test: $(READY) ## Run all tests
	$(BIN)/python -m pytest

test-fast: $(READY) ## Run the tests that take less than ten seconds each
	$(BIN)/python -m pytest -m 'not slow'

lint: $(READY) ## Check style and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell sslseg tools tests docs configs README.md CONTRIBUTING.md CHANGELOG.md

format: $(READY) ## Reformat the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(READY) ## Check the types
	$(BIN)/mypy

docs: $(READY) ## Build the documentation into site/
	$(BIN)/mkdocs build --strict --quiet

docs-serve: $(READY) ## Show the documentation at http://127.0.0.1:8000
	$(BIN)/mkdocs serve

bench: $(READY) ## Measure the store against PNG files, and a training step against its bare network passes
	$(BIN)/python tools/bench_store.py
	$(BIN)/python tools/bench_train.py

ci: lint typecheck docs test ## What .ci/run does

clean: ## Remove what the other targets made, but for .venv
	rm -rf site $(DEMO) .pytest_cache .mypy_cache .ruff_cache
