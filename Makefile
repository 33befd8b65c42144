PYTHON ?= python3
DEVICE ?= cpu
KILLS ?= 100
SEED ?= 0
UV_VERSION := 0.13.8

VENV := .venv
BIN := $(VENV)/bin
LOCK := envs/requirements.lock.txt
SNAKEMAKE := $(BIN)/snakemake

.PHONY: help demo smoke test test-all test-slow chaos lint format bench reference schema lock
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

test: $(VENV)/.done  ## the quick tests, three to eight minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadgroup -m "not slow and not thorough"

test-all: $(VENV)/.done  ## all tests that CI runs
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadgroup -m "not slow"

test-slow: $(VENV)/.done  ## simulations and other checks that take more than a minute each
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadgroup -m slow

chaos: $(VENV)/.done  ## the smoke study under KILLS random SIGKILLs, its summary compared to the byte
	$(BIN)/python tests/robustness/chaos.py --kills $(KILLS) --seed $(SEED)

bench: $(VENV)/.done  ## measure, into docs/benchmarks.md; DEVICE=cuda on a GPU
	$(BIN)/python benchmarks/run.py --device $(DEVICE)

reference: $(VENV)/.done  ## run the default study and ship its summary
	$(SNAKEMAKE) --cores all --config study=demo device=cpu
	mkdir -p results/reference/demo
	rm -rf results/reference/demo/summary
	cp -r results/demo/summary results/reference/demo/summary
	cp results/demo/figures/change-fc_siam_conc-pareto.png docs/pareto.png

schema: $(VENV)/.done  ## write the JSON schema and the page of all keys of a study
	$(BIN)/python -m bbnet.cli.schema

lint: $(VENV)/.done  ## ruff, snakefmt, snakemake --lint, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(SNAKEMAKE) --lint
	$(BIN)/lint-imports

format: $(VENV)/.done  ## ruff and snakefmt, writing
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules

lock:  ## resolve the dependencies of pyproject.toml again
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --fork-strategy fewest \
	    --generate-hashes --no-emit-index-url --quiet --output-file $(LOCK)
