# Every target sets up what it needs: the first one run makes .venv, later ones only when dependencies change.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
CONSTRAINTS := requirements/constraints.txt
TORCH := $(shell grep -i '^torch==' $(CONSTRAINTS))

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-slow check docs bench clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## make .venv with the pinned dependencies; once, and again when they change

# torch stands by its exact version in the same command: else another package may pull a CUDA build of several GB.
$(READY): pyproject.toml $(CONSTRAINTS)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV); this takes a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIPFLAGS) \
		"$(TORCH)" --editable '.[lora,serve,pgvector,milvus,bench,test,check,docs]' --constraint $(CONSTRAINTS)
	@touch $@

quickstart: $(READY)  ## train on a synthetic shop and compare before and after: quickstart/
	$(BIN)/opengcl quickstart --out quickstart

# One process a core with one thread each; the tests of a file stay together, as they share what is costly to make.
test: $(READY)  ## the tests, without those marked slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-slow: $(READY)  ## the tests marked slow
	$(BIN)/python -m pytest -m slow

check: $(READY)  ## lint, docstring lint (ruff's D rules), format, types
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

docs: $(READY)  ## build the documentation into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(READY)  ## time the parts beside named peers; about an hour on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed

clean:  ## remove what the targets made, .venv included
	rm -rf $(VENV) site build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
