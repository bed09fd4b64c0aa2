# Verbs for people and for continuous integration. `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
PYTHON_BIN := $(VENV)/bin/python
RESPEC := $(VENV)/bin/respec
INSTALLED := $(VENV)/.respec-installed

# The one place that says how the lock is made.
LOCK_FLAGS := --extra dev --universal --python-version 3.11 --no-emit-index-url --no-annotate --no-header

# `make serve ARGS="--model-path M --drafter-path D"`, `make test-fast ARGS="-k fit"`
ARGS ?=

.PHONY: help
help: ## list these verbs
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml requirements.lock
	@scripts/install.sh $(VENV)

.PHONY: install
install: $(INSTALLED) ## install everything, pinned, into .venv (about 9.5 GB)

.PHONY: demo
demo: $(INSTALLED) ## start a server with the bundled models, run a batch through it, show the figures
	@$(RESPEC) demo $(ARGS)

.PHONY: serve
serve: $(INSTALLED) ## serve the bundled models on 127.0.0.1:30000, or yours: ARGS="--model-path M --drafter-path D"
	@$(RESPEC) serve $(or $(ARGS),--demo)

# Left to `make test`: it imports SGLang, which takes longer than all of `check`.
SLOW_CONTRACT := tests/contract/test_tree_kernels_agree.py

.PHONY: check
check: $(INSTALLED) ## lint, format, types and contract tests (seconds)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/pytest -q tests/contract --ignore=$(SLOW_CONTRACT)

# Three for two cores: tests with servers wait much. See tests/conftest.py for what runs where; in
# the order of collection, servers come first.
WORKERS := -n 3 --no-loadscope-reorder

.PHONY: test
test: check ## everything: check, then all tests, real servers included
	@$(VENV)/bin/pytest $(WORKERS) $(ARGS)

.PHONY: test-fast
test-fast: $(INSTALLED) ## tests that start no server
	@$(VENV)/bin/pytest -q -n 2 -m "not server" $(ARGS)

.PHONY: bench
bench: $(INSTALLED) ## measure this machine: plain against speculative decoding
	@$(PYTHON_BIN) scripts/bench_serving.py $(ARGS)

.PHONY: rl-demo
rl-demo: $(INSTALLED) ## reinforcement learning on a CPU: plain, frozen drafter, learners, compared step by step
	@$(PYTHON_BIN) scripts/rl_demo.py $(ARGS)

.PHONY: models
models: $(INSTALLED) ## train the bundled demo models again
	@$(PYTHON_BIN) scripts/build_demo_models.py $(ARGS)

.PHONY: lock
lock: $(INSTALLED) ## resolve the dependencies again
	@$(PYTHON_BIN) -m uv pip compile pyproject.toml $(LOCK_FLAGS) -o requirements.lock

.PHONY: clean
clean: ## remove caches and logs, keep .venv
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist run
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
