# Everything runs in .venv against the built wheels: what is tested is what is shipped. The environment comes from the
# lock files in requirements/: run.lock for `make run`, dev.lock (run.lock and the development tools) for everything else.
PYTHON ?= python3
PORT ?= 50051
REGISTRY ?= build/registry
CONFIG ?= complete_journey

BIN := .venv/bin
# File stamps: .venv/.uv (the environment has uv), .run (run.lock is installed), .dev (dev.lock is installed), .wheel.
UV := .venv/.uv
RUN := .venv/.run
DEV := .venv/.dev
WHEEL := .venv/.wheel
PACKAGES := client feature_store service training
SOURCES := pyproject.toml README.md $(shell find $(PACKAGES) protos -type f -not -name '*.pyc' -not -path 'client/tidemark/v1/*' -not -path 'client/tidemark/rpc/*')
COMPILE := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links --no-emit-package tidemark-client
UV_INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install run test test-full test-faults test-slow-machine check format bench docs protos baseline lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(WHEEL) ## make the environment in .venv, with the command tidemark

run: $(WHEEL) ## train on the sample, load Redis, serve on 127.0.0.1:$PORT and show first answers; Ctrl-C stops it
	@exec $(BIN)/tidemark demo $(CONFIG) --registry $(REGISTRY) --port $(PORT)

test: $(DEV) $(WHEEL) ## run the tests against the built wheel; prints test_seconds and writes build/test.json
	$(BIN)/python -P tests/run_suite.py

test-full: $(DEV) $(WHEEL) ## run all tests on both fronts and at full size
	$(BIN)/python -P tests/run_suite.py --full

test-faults: $(DEV) $(WHEEL) ## kill processes and do other harm for ten minutes; an independent model says what is right
	$(BIN)/python -m tests.faults

test-slow-machine: $(DEV) $(WHEEL) ## run the tests beside busy loops that leave them a third of each core
	$(BIN)/python -P tests/slow_machine.py

check: $(DEV) $(WHEEL) ## format, lint, strict types, import directions, contract and Dockerfile lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint protos
	$(BIN)/buf breaking protos --against protos/baseline.binpb
	$(BIN)/hadolint Dockerfile

format: $(DEV) ## put the code into the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(DEV) $(WHEEL) ## measure all figures; writes build/bench.json
	$(BIN)/python -m tests.benchmarks --registry $(REGISTRY)

docs: $(DEV) $(WHEEL) ## build the documentation into build/docs, check its links; prints docs_build_seconds
	$(BIN)/python -P docs/build.py

protos: $(RUN) ## build the Python stubs of the contract into client/tidemark
	$(BIN)/python client/build_stubs.py

baseline: $(DEV) ## accept the contract as it is: make check compares later ones with it
	$(BIN)/buf build protos --output protos/baseline.binpb

# Of the sample only its Parquet files are used, by DuckDB; pandas and pyarrow (210 MB) are for its Python functions.
lock: $(UV) ## renew the lock files from pyproject.toml
	$(COMPILE) pyproject.toml --all-extras --group dev --output-file requirements/dev.lock
	$(COMPILE) pyproject.toml --constraints requirements/dev.lock --extra service --extra training --extra load --extra demo \
		--group build --no-emit-package pandas --no-emit-package pyarrow --output-file requirements/run.lock
	$(COMPILE) pyproject.toml --constraints requirements/dev.lock --extra service --output-file requirements/server.lock
	$(COMPILE) --constraints requirements/dev.lock --group pyproject.toml:build --output-file requirements/build.lock

clean: ## remove the environment and all that was built
	rm -rf .venv build client/tidemark/v1 client/tidemark/rpc .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# pip installs uv alone, and uv everything else, several times faster.
$(UV): requirements/build.lock
	@echo "making the environment in .venv (once; half a minute to two minutes, depending on the network)"
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python 3.11 or newer is needed: name one by PYTHON=python3.12")'
	@$(PYTHON) -m venv .venv
	@awk '/^uv==/ { found = 1 } found { print } found && !/\\$$/ { exit }' requirements/build.lock >.venv/uv.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --require-hashes --requirement .venv/uv.lock
	@touch $@

$(RUN): $(UV) requirements/run.lock
	@echo "installing requirements/run.lock"
	@$(UV_INSTALL) --no-deps --require-hashes --requirements requirements/run.lock
	@touch $@

# The development environment has exactly what its lock names, which includes all that running needs.
# Compiled at once: tests start hundreds of processes, and where bytecode must not be written each would compile it all.
$(DEV): $(UV) requirements/dev.lock
	@echo "installing requirements/dev.lock"
	@$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements/dev.lock
	@touch $(RUN) $@

$(WHEEL): $(RUN) $(SOURCES)
	@rm -rf build/dist
	@$(BIN)/uv build --quiet --wheel --no-build-isolation --python $(BIN)/python --out-dir build/dist client
	@$(BIN)/uv build --quiet --wheel --no-build-isolation --python $(BIN)/python --out-dir build/dist .
	@$(UV_INSTALL) --compile-bytecode --no-deps --reinstall build/dist/*.whl
	@touch $@
