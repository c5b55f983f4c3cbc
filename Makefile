# Needs git, make, Python 3.11 or newer with venv, and a package index. Everything is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINS := constraints.txt pyproject.toml
# Further arguments of the command that a target runs: make demo ARGS=--tiny, make test ARGS="-k folds"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test slow-test lint kernel-test clean

help:  ## List the targets
	@echo "make TARGET [ARGS=...] [PYTHON=python3.12]"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.dev-installed  ## Make .venv with everything that working on Goldfold needs

demo: $(VENV)/.demo-installed  ## Train, blend and score the embedded competition (ARGS=--tiny: two minutes, no download)
	$(BIN)/goldfold demo $(ARGS)

test: $(VENV)/.dev-installed  ## Run the tests but the slow ones
	$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

slow-test: $(VENV)/.dev-installed  ## Run the slow tests: more seeds, kinds of project, whole notebooks
	$(BIN)/python -m pytest -n 2 -m slow $(ARGS)

lint: $(VENV)/.dev-installed  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

kernel-test: $(VENV)/.demo-installed  ## Run the kernel as Kaggle does, on its package versions (PACK=DIR; none: the tiny demo's)
ifdef PACK
	$(BIN)/goldfold kernel-test $(PACK) $(ARGS)
else
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
		$(BIN)/goldfold -C $$folder demo --tiny && \
		$(BIN)/goldfold -C $$folder export digits --to packs/digits && \
		for layout in competitions datasets flat; do \
			$(BIN)/goldfold -C $$folder kernel-test packs/digits --unreadable 1 --layout $$layout \
				--cache $(CURDIR)/.cache/goldfold $(ARGS) || exit 1; \
		done
endif

clean:  ## Remove .venv and the tools' caches; data, weights and runs stay
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests inference -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The stamps say what is installed: a second call installs nothing, a changed pin or dependency installs again.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Goldfold needs Python 3.11 or newer, and '$(PYTHON)' is not; name one: make PYTHON=python3.12 ..." >&2; \
		exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		echo "'$(PYTHON)' cannot make a virtual environment; install its venv module (Debian: python3-venv)" >&2; \
		exit 1; }
	@touch $@

$(VENV)/.demo-installed: $(VENV)/.created $(PINS)
	$(PIP) install -c constraints.txt -e ".[demo]"
	@touch $@

$(VENV)/.dev-installed: $(VENV)/.created $(PINS)
	$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $(VENV)/.demo-installed $@
