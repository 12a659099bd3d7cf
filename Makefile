# The commands of the project. Everything happens in .venv; `make clean` removes what make made.

PYTHON ?= python3
VENV   := .venv
PEERS  := .venv-peers
PEER_NAMES := $(patsubst benchmarks/peers-%.txt,%,$(wildcard benchmarks/peers-*.txt))
BIN    := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo finetune-demo test check slow bench peers docs clean

demo: $(VENV)/.installed          ## raw dumps -> a model that answers
	$(BIN)/puna demo

finetune-demo: $(VENV)/.installed  ## a small chat model learns an answer format, and keeps what it knew
	$(BIN)/python examples/finetune_answers.py

# Most tests use one thread, so two processes share the suite; a module's tests, and its fixtures, stay together.
# Compiled modules are kept, whatever the environment says: each test that starts `puna` would compile them again.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope

test: check                       ## lint, types, and the test suite (with coverage from Python 3.12 on)
	$(PYTEST) --no-loadscope-reorder $$($(BIN)/python -c 'import sys; print("--cov" * (sys.version_info >= (3, 12)))')

check: $(VENV)/.installed-dev     ## ruff (lint, format), mypy, spelling; the code's size beside its budgets
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python tests/code_size.py

docs: $(VENV)/.installed-docs     ## the docs site, into site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "docs: site/index.html"

slow: $(VENV)/.installed-dev      ## the tests that take minutes or need the package index
	$(BIN)/python -m pytest -m "slow or network"

bench: $(VENV)/.installed-dev peers   ## against peers, side by side; QUICK=1: every script end to end, soon
	for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script $(if $(QUICK),--quick) || exit 1; done

peers: $(PEER_NAMES:%=$(PEERS)/%/.installed)   ## the tools that benchmarks compare with

# Versions for which every dependency has wheels (CONTRIBUTING.md has the table).
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("puna works with Python 3.11, \
	3.12 and 3.13; this is %d.%d; choose another with: make demo PYTHON=python3.13" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# torch first and alone: the other packages then take the build that is there.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install "torch==2.13.*"
	$(BIN)/pip install -e ".[all]"
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.installed
	$(BIN)/pip install -e ".[dev]"
	$(BIN)/pip install -e ".[perplexity]" || echo "kenlm needs a C++ compiler: its tests are skipped"
	touch $@

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/.installed
	$(BIN)/pip install -e ".[docs]"
	touch $@

# An environment per peer, because their requirements conflict. A peer that cannot be installed is left out.
$(PEERS)/%/.installed: benchmarks/peers-%.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	if { ! grep -q "^torch" $< || $(@D)/bin/pip install "$$(grep "^torch" $<)"; } \
	  && CMAKE_ARGS="-DGGML_NATIVE=ON" $(@D)/bin/pip install -r $<; then touch $@; \
	else rm -rf $(@D); echo "peer $* could not be installed; the benchmarks leave it out"; fi

clean:
	rm -rf $(VENV) $(PEERS) site .pytest_cache .mypy_cache .ruff_cache .hypothesis
