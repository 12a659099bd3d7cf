# The commands of the project. Everything happens in .venv; `make clean` removes what make made.

PYTHON ?= python3
VENV   := .venv
PEERS  := .venv-peers
BIN    := $(VENV)/bin

.PHONY: demo test check slow bench peers clean

demo: $(VENV)/.installed          ## raw dumps -> a model that answers
	$(BIN)/puna demo

test: check                       ## lint, types, and the test suite
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev     ## ruff (lint, format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

slow: $(VENV)/.installed-dev      ## the tests that take minutes or need the package index
	$(BIN)/python -m pytest -m "slow or network"

bench: $(VENV)/.installed-dev $(PEERS)/.installed   ## against peers, side by side
	for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script || exit 1; done

peers: $(PEERS)/.installed        ## the tools that benchmarks compare with, in an environment of their own

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("puna needs Python 3.11 or later" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# torch first and alone: the other packages then take the build that is there.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install "torch==2.13.*"
	$(BIN)/pip install -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.installed
	$(BIN)/pip install -e ".[dev]"
	$(BIN)/pip install -e ".[perplexity]" || echo "kenlm needs a C++ compiler: its tests are skipped"
	touch $@

$(PEERS)/.installed: benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install "torch==2.13.*"
	CMAKE_ARGS="-DGGML_NATIVE=ON" $(PEERS)/bin/pip install -r benchmarks/peers.txt   # llama.cpp for this processor
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) .pytest_cache .mypy_cache .ruff_cache .hypothesis
