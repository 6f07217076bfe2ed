# `make` alone lists the targets. Each does its own set-up: a .venv with the pinned versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
DEMO ?= demo
# Of the targets of methods: a folder of images and masks (empty: the built-in synthetic dataset), the fraction of training images that count as
# labeled, the working folder, and options of `sslseg train` such as TRAIN="--iterations 4000 --crop 320".
DATA ?=
RATIO ?= 1/8
WORK ?= $@
TRAIN ?=
# Every method is a target: its folder of configs names it. auto is the recommended one.
METHODS := auto $(sort $(patsubst configs/%/default.py,%,$(wildcard configs/[!_]*/default.py)))

.DEFAULT_GOAL := help
.PHONY: help setup demo $(METHODS) test test-fast lint format typecheck docs docs-tables docs-serve bench ci clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo "Pipelines of methods, from a split to scores: DATA=folder RATIO=1/8 WORK=folder TRAIN=\"options\"; run one again to go on."
	@for method in $(METHODS); do echo "  make $$method"; done

setup: $(READY) ## Make .venv with the package and its development extras

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## Split, train, pseudolabel, refine and eval on the built-in synthetic dataset, in the folder demo/
	$(BIN)/python tools/demo.py $(DEMO)

$(METHODS): $(READY)
	$(BIN)/python tools/pipeline.py $@ --work "$(WORK)" --ratio $(RATIO) $(if $(DATA),--data "$(DATA)") -- $(TRAIN)

test: $(READY) ## Run all tests, on two cores
	$(BIN)/python -m pytest -n 2

test-fast: $(READY) ## Run the tests that take less than two seconds each
	$(BIN)/python -m pytest -n 2 -m 'not slow'

lint: $(READY) ## Check style, spelling and the layers of the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell sslseg tools tests docs configs README.md CONTRIBUTING.md CHANGELOG.md
	$(BIN)/lint-imports

format: $(READY) ## Reformat the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(READY) ## Check the types
	$(BIN)/mypy

docs: $(READY) ## Build the documentation into site/
	$(BIN)/mkdocs build --strict --quiet

docs-tables: $(READY) ## Rewrite the tables of options and settings in docs/ from the program
	$(BIN)/python tools/tables.py

docs-serve: $(READY) ## Show the documentation at http://127.0.0.1:8000
	$(BIN)/mkdocs serve

bench: $(READY) ## Measure the store against PNG files, and an iteration of every method against its bare network passes
	$(BIN)/python tools/bench_store.py
	$(BIN)/python tools/bench_train.py

ci: lint typecheck docs test ## What .ci/run does

clean: ## Remove what the other targets made, except .venv
	rm -rf site $(DEMO) .pytest_cache .mypy_cache .ruff_cache
