# `make` lists the targets. Each sets up what it needs (ci/run.py, once) and does one thing.
PY ?= python3
RUN := $(PY) ci/run.py
BIN := .venv/bin/python
FAST := not slow and not ranks and not compile and not hostnpu and not browser

.DEFAULT_GOAL := help
.PHONY: help setup test test-all lint format tutorial lab docs bench

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make or re-use .venv
	@$(RUN) setup

test: ## the fast tests, for every day: a minute on two cores
	@OMP_NUM_THREADS=1 $(RUN) test -- -q -n 2 --dist worksteal -m "$(FAST)" $(ARGS)

test-all: ## every test
	@OMP_NUM_THREADS=1 $(RUN) test -- -n 2 --dist worksteal $(ARGS)

lint: ## lint, format, types, spelling, rules of the notebooks, tables of the docs
	@$(RUN) check

format: ## lay the Python out anew
	@$(RUN) setup
	@$(BIN) -m ruff check --fix . && $(BIN) -m ruff format .

tutorial: ## run every notebook and build the pages
	@$(RUN) tutorial $(ARGS)

lab: ## open JupyterLab on the notebooks
	@$(RUN) lab

docs: ## docs/ as pages in out/docs
	@$(RUN) setup
	@for config in mkdocs mkdocs.zh-CN; do \
		NO_MKDOCS_2_WARNING=1 $(BIN) -m mkdocs build --config-file ci/$$config.yml || exit 1; done
	@echo out/docs/architecture.html out/docs/zh-CN/architecture.html

bench: ## the ladder on this machine, which nobody else may use meanwhile
	@$(RUN) setup
	@$(BIN) -m dsv3_port bench --profile w1 --context 1024 --compile $(ARGS)
