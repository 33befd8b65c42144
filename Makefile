PYTHON ?= python3
DEVICE ?= cpu
KILLS ?= 100
TORCH ?= 2.6.0 newest
SEED ?= 0
UV_VERSION := 0.13.8

VENV := .venv
BIN := $(VENV)/bin
CLIENTS := .venv-clients
LOCK := envs/requirements.lock.txt
CLIENTS_LOCK := envs/clients.lock.txt
COMPILE := --universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-emit-index-url --quiet
SNAKEMAKE := $(BIN)/snakemake

.PHONY: help demo smoke test test-all test-slow test-core test-clients chaos lint format bench reference findings schema lock
help:  ## what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/:/' | column -t -s ':'

$(VENV)/.done: $(LOCK) pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else "bbnet needs Python 3.11 or 3.12, this is " + sys.version.split()[0] + ": choose another with make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r $(LOCK)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

demo: $(VENV)/.done  ## the default study: embedded data, CPU, minutes
	$(SNAKEMAKE) --cores all

smoke: $(VENV)/.done  ## the smallest study, under two minutes
	$(SNAKEMAKE) --cores all --config study=smoke

test: $(VENV)/.done  ## the quick tests, ten to twenty minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadgroup -m "not slow and not thorough"

test-all: $(VENV)/.done  ## all tests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadgroup -m "not slow"

test-slow: $(VENV)/.done  ## simulations and other checks that take more than a minute each
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadgroup -m slow

test-core: $(VENV)/.done  ## the tests of the core, on the built wheel beside the oldest and the newest torch, or TORCH=2.9.0
	tests/core.sh $(TORCH)

test-clients: $(CLIENTS)/.done  ## the library under models and trainers of other packages, in an environment of its own
	OMP_NUM_THREADS=1 $(CLIENTS)/bin/pytest -n auto --dist loadgroup -m "not slow" tests/clients

$(CLIENTS)/.done: $(VENV)/.done $(CLIENTS_LOCK)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(CLIENTS)
	$(BIN)/uv pip install --quiet --python $(CLIENTS) --require-hashes -r $(CLIENTS_LOCK)
	$(BIN)/uv pip install --quiet --python $(CLIENTS) --no-deps --build-constraints $(LOCK) --editable .
	touch $@

chaos: $(VENV)/.done  ## the smoke study under KILLS random SIGKILLs, its summary compared to the byte
	$(BIN)/python tests/robustness/chaos.py --kills $(KILLS) --seed $(SEED)

bench: $(VENV)/.done  ## measure, into docs/benchmarks.md; DEVICE=cuda on a GPU
	$(BIN)/python benchmarks/run.py --device $(DEVICE)

reference: $(VENV)/.done  ## run the default study and ship its summary
	$(SNAKEMAKE) --cores all --config study=demo device=cpu
	$(BIN)/bbnet ship --study demo
	cp results/demo/figures/change-fc_siam_conc-pareto.png docs/pareto.png

findings: $(VENV)/.done  ## compute docs/findings.md from the shipped summaries
	$(BIN)/python -m bbnet.cli.findings

schema: $(VENV)/.done  ## write the JSON schema and the page of all keys of a study
	$(BIN)/python -m bbnet.cli.schema

lint: $(VENV)/.done  ## ruff, vermin, snakefmt, snakemake --lint, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/vermin --quiet --target=3.10- --no-tips --violations bbnet/__init__.py bbnet/binary bbnet/diagnostics bbnet/sparsity bbnet/data/store.py
	$(BIN)/snakefmt --check Snakefile rules
	$(SNAKEMAKE) --lint
	$(BIN)/lint-imports

format: $(VENV)/.done  ## ruff and snakefmt, writing
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules

lock:  ## resolve the dependencies of pyproject.toml again, around the pins of envs/pins.txt
	$(BIN)/uv pip compile pyproject.toml --extra study --extra dev --constraint envs/pins.txt $(COMPILE) \
	    --output-file $(LOCK)
	$(BIN)/uv pip compile pyproject.toml --extra clients --constraint $(LOCK) $(COMPILE) \
	    --output-file $(CLIENTS_LOCK)
