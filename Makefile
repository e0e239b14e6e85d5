# `make train` and `make test` are the two main commands. Both install what they need, once.
SHELL := /bin/bash
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
N ?= 10000
SEED ?= 0
.PHONY: help setup train test test-core test-lowest docs bench gpu own-data structure fuzz check install-size format lock clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## install everything into .venv, once

# Reinstalls only when the pins or the metadata change.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "segdpo needs Python 3.11 or newer; set PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

train: $(STAMP)  ## a complete run on the embedded data; options: make train ARGS="loss=dpo seed=1"
	$(BIN)/python train.py loss=hinge_anchor $(ARGS)

test: check docs  ## every check and every test; with the coverage, at least 95 %: make test ARGS=--cov
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-core: $(STAMP)  ## test the losses where torch and jaxtyping are installed and no other package that segdpo uses
	$(BIN)/python scripts/test_environment.py core

test-lowest: $(STAMP)  ## test the core and training with the lowest versions that pyproject.toml allows; takes long
	$(BIN)/python scripts/test_environment.py lowest

docs: $(STAMP)  ## build the documentation site into outputs/docs; warnings and dead references are errors
	$(BIN)/python -m sphinx -W --keep-going -n -q -E docs outputs/docs
	@echo "outputs/docs/index.html"

bench: $(STAMP)  ## measure speed and memory: a table and benchmark.json; options: make bench ARGS="--only loss"
	$(BIN)/python scripts/benchmark.py $(ARGS)

# Without `make setup`, since a machine with a GPU may reach no package index: it uses what is installed there.
gpu:  ## on a machine with CUDA: its tests and measurements, as tables for docs/performance.md; options: make gpu ARGS="--tune"
	PYTHONPATH=$(CURDIR) $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) scripts/gpu.py $(ARGS)

own-data: $(STAMP)  ## measure the figures of own data (docs/results.md); options: make own-data ARGS="--only layouts"
	$(BIN)/python scripts/own_data.py $(ARGS)

structure: $(STAMP)  ## signs of structure: modules, lines, helpers, the files that a batch passes
	$(BIN)/python scripts/structure.py

fuzz: $(STAMP)  ## open mutated files of every kind and count the outcomes; options: make fuzz N=1000 SEED=1 ARGS="--only shard"
	$(BIN)/python scripts/fuzz.py --cases $(N) --seed $(SEED) $(ARGS)

check: $(STAMP)  ## lint, format, types, direction of imports, declared dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/deptry segdpo

install-size: $(STAMP)  ## count packages and megabytes of segdpo and its extras (docs/performance.md)
	$(BIN)/python scripts/install_size.py

format: $(STAMP)  ## fix what can be fixed automatically, and format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

lock: $(STAMP)  ## write requirements.lock again from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-emit-package segdpo \
	  --generate-hashes --no-strip-extras --no-header --no-annotate --quiet --output-file requirements.lock

clean:  ## remove everything that was built or run
	rm -rf $(VENV) build dist .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis .cache *.egg-info outputs multirun
