# Everything runs in .venv, made from the lock, against the built wheel: what is tested is what is shipped.
PYTHON ?= python3
PORT ?= 50051
REGISTRY ?= build/registry
CONFIG ?= complete_journey

BIN := .venv/bin
ENV := .venv/.locked
WHEEL := .venv/.wheel
PACKAGES := client feature_store service training
SOURCES := pyproject.toml README.md $(shell find $(PACKAGES) protos -type f -not -name '*.pyc' -not -path '*/tidemark/v1/*' -not -path '*/tidemark/rpc/*')

.DEFAULT_GOAL := help
.PHONY: help run test check format bench protos lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(WHEEL) ## train on the sample, load Redis, serve on 127.0.0.1:$PORT and show first answers; Ctrl-C stops it
	@exec $(BIN)/python -P -m service.demo $(CONFIG) --registry $(REGISTRY) --port $(PORT)

# End to end comes last: it needs the sample's model, which one process fits while the other goes on.
test: $(WHEEL) ## run all tests against the built wheel
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder tests/integration tests/unit tests/e2e

check: $(WHEEL) ## format, lint, strict types, import directions, contract and Dockerfile lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint protos
	$(BIN)/hadolint Dockerfile

format: $(ENV) ## put the code into the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(WHEEL) ## measure the figures of the README; writes build/bench.json
	$(BIN)/python -m tests.benchmarks --registry $(REGISTRY)

protos: $(ENV) ## build the Python stubs of the contract into client/tidemark
	$(BIN)/python client/build_stubs.py

lock: $(ENV) ## renew the lock files from pyproject.toml
	$(BIN)/uv pip compile -q pyproject.toml --all-extras --group dev --no-emit-package tidemark-client --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links --upgrade -o requirements.lock
	$(BIN)/uv pip compile -q pyproject.toml --extra service --no-emit-package tidemark-client --universal --python-version 3.11 -c requirements.lock \
		--generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links --upgrade -o service/requirements.lock

clean: ## remove the environment and all that was built
	rm -rf .venv build client/tidemark/v1 client/tidemark/rpc .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(ENV): requirements.lock
	@echo "making the environment from requirements.lock (once; a minute or two)"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@touch $@

$(WHEEL): $(ENV) $(SOURCES)
	@rm -rf build/dist
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir build/dist ./client .
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall build/dist/*.whl
	@touch $@
