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
setup: venv ## Build .venv from the pinned packages, and install the tools of the tests where they are missing
	@deploy/install-test-tools.sh

# Without the broker's package: the demo looks for a broker first.
.PHONY: demo
demo: venv ## Show what the worker does, in about a minute
	@$(BIN)/python -m tests.demo

.PHONY: run
run: venv ## Run the worker (settings from the environment: WORKER_AMQP_URL ...)
	@$(BIN)/projection-worker run

# Reproducible: the same SEED chooses the same faults in the same order.
.PHONY: chaos
chaos: setup ## Inject faults for SECONDS (600), and see that nothing is lost; SEED chooses them
	@$(BIN)/python -m tests.chaos --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

# Both start a broker of their own. Leave the machine alone meanwhile: it has few cores.
.PHONY: bench
bench: setup ## Measure the worker beside what people use instead, in some minutes
	@$(BIN)/python -m tests.benchmarks quick

.PHONY: bench-full
bench-full: setup ## Measure everything, in half an hour, and write docs/performance.md anew
	@$(BIN)/python -m tests.benchmarks full --document

# After lint, also under -j: the cheap answer comes first.
.PHONY: test
test: setup lint ## Check everything: lint, then all tests
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# With docker, podman or buildah, whichever works. PYTHON_IMAGE names another base image, ENGINE and
# BUILD_OPTIONS are explained in tests/image/engine.py.
.PHONY: image-test
image-test: setup ## Build the image, and see it run, stop and stand by as a container
	@$(BIN)/python -m pytest -p no:cacheprovider --capture no tests/image/scenarios.py

.PHONY: lint
lint: venv ## Check style, types, who imports whom, scripts and deployment files
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/shellcheck deploy/*.sh .ci/run
	@$(BIN)/hadolint deploy/Dockerfile
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

.PHONY: format
format: venv ## Rewrite the code in the project's style
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# A release that is a week old has been looked at by others: a poisoned one is mostly gone by then.
PIN := $(BIN)/uv --no-config pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --custom-compile-command 'make lock' \
	--exclude-newer '7 days' $(if $(UPGRADE),--upgrade)

.PHONY: lock
lock: venv ## Pin the requirements anew (UPGRADE=1: to the newest that are a week old)
	$(PIN) --group build --output-file deploy/requirements.txt
	$(PIN) --group dev --constraints deploy/requirements.txt --output-file deploy/requirements-dev.txt

.PHONY: clean
clean: ## Remove what was built
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
