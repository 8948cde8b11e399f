.DEFAULT_GOAL := help
BIN := .venv/bin
PYTHON ?= python3
.PHONY: help install demo reproduce notebooks test test-all lint format docs house bench clean

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

notebooks: install  ## Run the notebooks of examples/ in full size and write them anew
	OMP_NUM_THREADS=1 $(BIN)/python examples/notebooks.py

test: install  ## The fast tests
	$(BIN)/python -m pytest -m 'not slow' -q -n 2 --dist worksteal

test-all: install  ## All tests
	$(BIN)/python -m pytest -q

lint: install  ## Format, lint, types and the direction of imports, as CI checks them
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/ty check && $(BIN)/lint-imports

format: install  ## Mend what ruff can mend
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

docs: install  ## Build the site; open site/index.html, no server is needed
	$(BIN)/python docs/gather.py && $(BIN)/python examples/notebooks.py --pages build/docs/examples
	$(BIN)/zensical build --strict

house: install  ## Measure the layout, size and wording of the code against their limits
	$(BIN)/python benchmarks/house.py

bench: install  ## Run the short benchmarks; build/benchmarks.md has their table
	$(BIN)/python benchmarks/run_all.py

clean:  ## Remove the environment and caches; runs in outputs/ stay
	rm -rf .venv dist build site .cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
