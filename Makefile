# Slipway: `make demo` shows everything, `make test` checks everything.
PYTHON ?= python3.11
SETUP = infra/setup/environments.py
VARIANT ?= cpu
BASE_IMAGE ?= python:3.11-slim-bookworm

IMAGES = $(if $(filter docker,$(BACKEND)),images)

.DEFAULT_GOAL := help
.PHONY: help python setup setup-tests demo up down images test lint drills bench clean

help:  ## Show this list
	@echo "Slipway: from a data set to a serving fleet."
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo "Afterwards: ./slipway --help"

python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "Python 3.11 is needed, and there is no $(PYTHON) on PATH: install it, or run make with PYTHON=/path/to/python3.11" >&2; \
		exit 1; }

setup: python  ## Make the three Python environments (repeating it is free)
	@$(PYTHON) $(SETUP)

setup-tests: python
	@$(PYTHON) $(SETUP) --tests

demo: setup $(IMAGES)  ## Set up, start the stack, release the demo model (BACKEND=docker: steps as containers)
	@./slipway demo $(BACKEND:%=--backend %)

up: setup $(IMAGES)  ## Start the local stack, or repair it (BACKEND=docker: steps as containers)
	@./slipway up $(BACKEND:%=--backend %)

down:  ## Stop everything that runs
	@./slipway down

images: python  ## Build the three container images (VARIANT=cuda: for GPUs)
	@PYTHONPATH=. $(PYTHON) infra/setup/images.py --variant $(VARIANT) --base-image $(BASE_IMAGE)

test: setup-tests  ## Lint, types, import rules, and all tests
	@$(PYTHON) infra/setup/check.py

lint: setup-tests  ## Lint, types and import rules alone
	@$(PYTHON) infra/setup/check.py --lint

drills: setup-tests  ## Kill every service of the stack in docker compose, parts of trainings and of the fleet (40 minutes)
	@$(PYTHON) infra/setup/check.py --drills

bench: setup-tests  ## Run the benchmarks; one JSON line a figure
	@$(PYTHON) infra/setup/bench.py

clean:  ## Stop everything and remove the environments and all state
	@if [ -x ./slipway ] && [ -d "$${SLIPWAY_VENVS:-.venvs}/control" ]; then ./slipway down; fi
	@rm -rf "$${SLIPWAY_HOME:-.slipway}" "$${SLIPWAY_VENVS:-.venvs}" build .pytest_cache .mypy_cache .ruff_cache
