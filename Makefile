# Every target sets up what it needs; run `make` for the list. GNU make, any POSIX shell.

PYTHON ?= python3
WORKERS ?= 2
DEMO_FOLDER ?= demo_output

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INTEROP := .venv-interop
INTEROP_INSTALLED := $(INTEROP)/.installed

# The tests run in WORKERS processes, each with one thread: more threads than cores make torch many times slower.
# Tests of one file stay in one process, so that what the file prepares once is prepared once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope

# $(call new_environment,FOLDER): a virtual environment in FOLDER, unless it holds one already.
define new_environment
@test -x $(1)/bin/pip || { $(call supported,$(PYTHON)) && "$(PYTHON)" -m venv $(1); } || { \
	echo "make: no environment could be made with '$(PYTHON)' ($$("$(PYTHON)" --version 2>&1 | head -n 1))." >&2; \
	echo "biasreg needs Python 3.10 to 3.13 with venv: name one with make PYTHON=/path/to/python3.12" >&2; \
	exit 1; }
@$(call supported,$(1)/bin/python) || { \
	echo "make: the environment $(1) has $$($(1)/bin/python --version 2>&1 | head -n 1)," \
	"but biasreg needs Python 3.10 to 3.13: run 'make distclean', then this again" >&2; \
	exit 1; }
endef
supported = "$(1)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null

.PHONY: help install interop demo check lint test-fast test format clean distclean
.DELETE_ON_ERROR:

help: ## List the targets (this text)
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'
	@echo "Variables: PYTHON=$(PYTHON)  WORKERS=$(WORKERS) (test processes)  DEMO_FOLDER=$(DEMO_FOLDER)"

install: $(INSTALLED) ## Make .venv and install biasreg there, editable, with the test and development tools
$(INSTALLED): pyproject.toml setup.py constraints.txt
	$(call new_environment,$(VENV))
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[test,dev]"
	@touch $@

interop: $(INSTALLED) $(INTEROP_INSTALLED) ## Check biasreg's files against other programs, which .venv-interop holds
	$(PYTEST) tests/interoperability
$(INTEROP_INSTALLED): tests/interoperability/requirements.txt
	$(call new_environment,$(INTEROP))
	$(INTEROP)/bin/python -m pip install --disable-pip-version-check -r tests/interoperability/requirements.txt
	@touch $@

demo: $(INSTALLED) ## Plan, train, predict, evaluate and report on a small synthetic dataset, into ./demo_output
	$(BIN)/biasreg_demo -o "$(DEMO_FOLDER)"

check: lint test-fast ## Lint, and run the fast tests: what to run before each commit

lint: $(INSTALLED) ## Check format, lint, types and the import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-fast: $(INSTALLED) ## Run the fast tests
	$(PYTEST) -m "not slow"

test: $(INSTALLED) $(INTEROP_INSTALLED) ## Run all tests
	$(PYTEST)

format: $(INSTALLED) ## Format the code, and repair what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Delete caches, build products and the demo's output
	rm -rf build dist demo_output *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path './.venv*' -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## Delete the environments too
	rm -rf $(VENV) $(INTEROP)
