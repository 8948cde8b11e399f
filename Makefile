.DEFAULT_GOAL := help
BIN := .venv/bin
PYTHON ?= python3
.PHONY: help install demo reproduce test test-all lint format house clean

help:  ## Show what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: .venv/installed  ## Make the environment .venv with everything that is tested

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install  ## Train a U-Net on made EM images: a table, a run folder and pictures
	$(BIN)/python -m seg.train experiment=demo

reproduce: install  ## Train again what conf/experiment/ records, small on a CPU, and compare
	$(BIN)/python benchmarks/reproduce.py

test: install  ## The fast tests
	$(BIN)/python -m pytest -m 'not slow' -q -n 2

test-all: install  ## All tests
	$(BIN)/python -m pytest -q

lint: install  ## Format, lint, types and the direction of imports, as CI checks them
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/ty check && $(BIN)/lint-imports

format: install  ## Mend what ruff can mend
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

house: install  ## Measure the layout, size and wording of the code against their limits
	$(BIN)/python benchmarks/house.py

clean:  ## Remove the environment and caches; runs in outputs/ stay
	rm -rf .venv dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
