# One virtual environment, `.venv`, serves every target; it is made when one first needs it.
# Options of the programs go through ARGS: make demo ARGS="--mode sync --workers 2"

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_BENCH := $(VENV)/.installed-bench
INSTALLED_DOCS := $(VENV)/.installed-docs
INSTALLED_INTEGRATIONS := $(VENV)/.installed-integrations

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-full soak check docs serve bench bench-peers clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Make .venv and install Stepwell into it, editable, with all extras.

demo: $(INSTALLED) ## Train a real classifier with four worker processes through a real server.
	$(BIN)/stepwell demo $(ARGS)

test: $(INSTALLED) ## Run the tests.
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not full" $(ARGS)

# The rest: what takes long, and what needs more than `make setup` installs.
test-full: $(INSTALLED_INTEGRATIONS) ## Install what some tests need, frameworks and packages of Debian, and run those tests.
	.ci/install-test-tools
	STEPWELL_REQUIRE=strace,tmpfs,Rscript,chromium,prometheus,promtool,playwright.sync_api,jax,keras,optax,torch $(BIN)/python -m pytest -m full $(ARGS)

soak: $(INSTALLED) ## Kill servers for an hour, 1,000 times, and check that nothing was lost.
	$(BIN)/python -m tests.faults.soak $(ARGS)

check: $(INSTALLED) ## Check format, lint and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict core/stepwell_core server/stepwell_server client/stepwell

docs: $(INSTALLED_DOCS) ## Build the documentation as a site, build/docs/index.html.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml $(ARGS)

serve: $(INSTALLED) ## Start a server on http://127.0.0.1:8700.
	$(BIN)/stepwell serve $(ARGS)

bench: $(INSTALLED_BENCH) ## Run the benchmarks.
	$(BIN)/python -m benchmarks $(ARGS)

bench-peers: $(INSTALLED) ## Run the same work on other systems, each in an environment of its own.
	$(BIN)/python -m benchmarks peers $(ARGS)

clean: ## Remove all environments, caches and build output, but no data.
	rm -rf $(VENV) .venv-peers build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find core server client tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian's Python without its python3-venv package makes environments without pip;
# then the system's pip puts one in.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Stepwell needs Python 3.11 or newer, and '$(PYTHON)' is not." \
	       "Name another one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) 2>/dev/null || { \
	  $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	  $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	@echo "Installing Stepwell and its packages into $(VENV); once, for a minute or some" >&2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable ".[server,demo,dev]"
	@touch $@

# torch is 200 MB and more, and only the benchmarks and the tests of its integration need it.
$(INSTALLED_BENCH): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@touch $@

# The site's generator is 20 MB, and nothing else needs it.
$(INSTALLED_DOCS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	@touch $@

# The frameworks that the client is at home in, and what drives a browser; tests skip where they are missing.
$(INSTALLED_INTEGRATIONS): $(INSTALLED_BENCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable ".[jax,keras]" optax playwright
	@touch $@
