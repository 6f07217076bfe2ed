# `make` alone lists the targets. Each does its own set-up: a .venv with the pinned versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
DEMO ?= demo
# Of the targets of methods (`make three-stage`, ...): a folder of images and masks (empty: the embedded dataset), the labelled share, where to work, and
# options of `sslseg train` such as TRAIN="--iters 4000 --crop 320".
DATA ?=
RATIO ?= 1/8
WORK ?= $@
TRAIN ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo three-stage gct u2pl guidedmix test test-fast lint format typecheck docs docs-serve bench ci clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY) ## Make .venv with the package and its development extras

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## Split, train, pseudolabel, refine and eval on the embedded dataset, in the folder demo/
	$(BIN)/python tools/demo.py $(DEMO)

# What the pipelines begin with.
define begin
mkdir -p $(WORK)
cd $(WORK) && { test -z "$(DATA)" || test -e sslseg.toml || $(BIN)/sslseg init --data $(abspath $(DATA)); }
cd $(WORK) && $(BIN)/sslseg split --ratio $(RATIO) --out split
endef

three-stage: $(READY) ## Three-stage self-training: DATA=folder RATIO=1/8 WORK=folder; run it again to go on
	$(begin)
	cd $(WORK) && $(BIN)/sslseg train --method supervised --split split --run-dir stage1 --resume $(TRAIN)
	cd $(WORK) && $(BIN)/sslseg pseudolabel stage1 --subset train --resume
	cd $(WORK) && $(BIN)/sslseg refine stage1 --stage 2 --run-dir stage2 --resume $(TRAIN)
	cd $(WORK) && $(BIN)/sslseg refine stage2 --stage 3 --run-dir stage3 --resume $(TRAIN)
	cd $(WORK) && $(BIN)/sslseg eval stage3

gct: $(READY) ## Guided collaborative training: DATA=folder RATIO=1/8 WORK=folder; run it again to go on
	$(begin)
	cd $(WORK) && $(BIN)/sslseg train --method gct --split split --run-dir gct --resume $(TRAIN)
	cd $(WORK) && $(BIN)/sslseg pseudolabel gct --resume
	cd $(WORK) && $(BIN)/sslseg refine gct --keep "flaw<0.6" --run-dir student --resume $(TRAIN)
	cd $(WORK) && $(BIN)/sslseg eval student

u2pl: $(READY) ## Unreliable pseudo-labels: DATA=folder RATIO=1/8 WORK=folder; run it again to go on
	$(begin)
	cd $(WORK) && $(BIN)/sslseg train --method u2pl --split split --run-dir u2pl --resume $(TRAIN)
	cd $(WORK) && $(BIN)/sslseg pseudolabel u2pl --resume --reliability q80
	cd $(WORK) && $(BIN)/sslseg eval u2pl

guidedmix: $(READY) ## GuidedMix-Net and its decoupled pseudo-masks: DATA=folder RATIO=1/8 WORK=folder; run it again to go on
	$(begin)
	cd $(WORK) && $(BIN)/sslseg train --method guidedmix --split split --run-dir guidedmix --resume $(TRAIN)
	cd $(WORK) && $(BIN)/sslseg pseudolabel guidedmix --decouple --resume
	cd $(WORK) && $(BIN)/sslseg eval guidedmix

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
