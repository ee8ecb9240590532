# make setup, then make demo. All targets are safe to repeat; PY=/path/to/python uses another environment than .venv.
SHELL := /bin/bash
PYTHON ?= python3
PY ?= .venv/bin/python
WORKERS ?= 2
# one thread a process: two workers on two cores would otherwise wait for each other
PYTEST = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(PY) -m pytest -q -n $(WORKERS)

# an environment of one's own needs no setup
ifeq ($(PY),.venv/bin/python)
READY = .venv/.stamp
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all gpu bench check format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/.stamp  ## make .venv with everything in it

.venv/.stamp: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet torch==2.13.0 -c constraints.txt
	.venv/bin/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@

demo: $(READY)  ## two real experiments, into runs/demo
	$(PY) examples/demo.py
	$(PY) examples/boxes.py

test: $(READY)  ## the fast tests
	$(PYTEST)

test-all: $(READY)  ## all tests but those that need an accelerator
	$(PYTEST) -m 'not gpu'

gpu: $(READY)  ## the tests and the measurement that need an accelerator
	$(PYTEST) -n 0 -m gpu
	$(PY) benchmarks/throughput.py

bench: $(READY)  ## the measurements in benchmarks/
	@ls benchmarks/*.py >/dev/null 2>&1 || { echo "no benchmarks yet"; exit 1; }
	for file in benchmarks/*.py; do $(PY) $$file || exit 1; done

check: $(READY)  ## what a change must pass: style, types, tests
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PYTEST)

format: $(READY)  ## write the style that check asks for
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove what the tools left, not runs/ and not .venv
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
