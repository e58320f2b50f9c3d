# `make` shows what there is.
SHELL := /bin/sh
.DEFAULT_GOAL := help
BIN := .venv/bin

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Costs milliseconds when there is nothing to do.
.PHONY: venv
venv:
	@deploy/setup.sh

.PHONY: setup
setup: venv ## Build .venv, and install what the tests need (RabbitMQ, PostgreSQL, strace)
	@deploy/install-test-tools.sh

# Without the broker's package: the demo looks for a broker first.
.PHONY: demo
demo: venv ## Kill workers under load, and show that the rows are right, in about a minute
	@$(BIN)/python -m tests.demo

# Its own RabbitMQ and PostgreSQL, which it installs if they are missing.
.PHONY: demo-scale
demo-scale: venv ## Kill, add and move four workers on PostgreSQL, and show that the rows are right
	@$(BIN)/python -m tests.demo.scale

.PHONY: run
run: venv ## Run the worker (settings from the environment, such as WORKER_AMQP_URL)
	@$(BIN)/projection-worker run

# Reproducible: the same SEED chooses the same faults in the same order.
.PHONY: chaos
chaos: setup ## Inject faults for SECONDS (600) with STORE (sqlite, postgres); nothing may be lost; SEED chooses
	@$(BIN)/python -m tests.chaos --store $(or $(STORE),sqlite) \
		--seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

# Both start a broker of their own. Run nothing else meanwhile: the machine has few cores.
.PHONY: bench
bench: setup ## Measure the worker against its limits and alternatives, in about five minutes
	@$(BIN)/python -m tests.benchmarks quick

.PHONY: bench-full
bench-full: setup ## Measure everything, in half an hour, and rewrite docs/performance.md
	@$(BIN)/python -m tests.benchmarks full --document

# After lint, even under -j: the cheap answer comes first.
.PHONY: test
test: setup lint ## Check everything: lint, then all tests, JOBS (3) files at a time
	@$(BIN)/python -m pytest --numprocesses $(or $(JOBS),3) --dist loadfile --no-loadscope-reorder

# For the inner loop: needs no broker and no other service.
.PHONY: test-fast
test-fast: venv ## Check style, then run the tests that need no broker, in under a minute
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-broker \
		tests/unit tests/store tests/docs tests/deploy

# Uses docker, podman or buildah, whichever works. PYTHON_IMAGE names another base image;
# tests/image/engine.py explains ENGINE and BUILD_OPTIONS.
.PHONY: image-test
image-test: setup ## Build the image, and check that it runs, stops and stands by as a container
	@$(BIN)/python -m pytest -p no:cacheprovider --capture no tests/image/scenarios.py

.PHONY: lint
lint: venv ## Check style, types, imports between layers, scripts and deployment files
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/shellcheck deploy/*.sh deploy/*/*.sh .ci/run
	@$(BIN)/hadolint deploy/Dockerfile
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml deploy/compose.scale.yml

.PHONY: format
format: venv ## Rewrite the code in the project's style
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# Others have looked at a release that is a week old: a poisoned one is usually gone by then.
PIN := $(BIN)/uv --no-config pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --custom-compile-command 'make lock' --extra postgres \
	--exclude-newer '7 days' $(if $(UPGRADE),--upgrade)

.PHONY: lock
lock: venv ## Pin the requirements again (UPGRADE=1: at the newest releases that are a week old)
	$(PIN) --group build --output-file deploy/requirements.txt
	$(PIN) --group dev --constraints deploy/requirements.txt --output-file deploy/requirements-dev.txt

.PHONY: clean
clean: ## Remove what was built
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
