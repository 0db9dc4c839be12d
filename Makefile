# Two commands on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# The core: what the paper's section 3 is made of. Nine lines of ten must be run by the fast tests.
CORE := graph tracing macs channels branches structure gate_points gater binarizers model losses
COVER := $(CORE:%=--cov=gaternet.%) --cov-report=term --cov-fail-under=90
# Its tests, which are counted, and all others, which counting would slow by a third.
CORE_TESTS := $(wildcard tests/test_*.py) tests/backbones/
OTHER_TESTS := $(filter-out tests/backbones/ tests/__pycache__/,$(wildcard tests/*/))

# A few processes of one thread each, whatever the machine has: each takes a gigabyte. Faults wait a lot.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Kills, full disks, lost processes, image bombs: what takes more than a few seconds of docs/reliability.md.
FAULTS := $(patsubst %,tests/training/test_%.py,crashes crashes_of_recipes interruption full_disk \
	rank_faults seeds) \
	$(addprefix tests/data/test_,workers.py image_bombs.py)

.PHONY: demo test test-faults test-all check results clean
.DELETE_ON_ERROR:

demo: .venv/installed
	$(BIN)/gaternet demo

test: .venv/installed-dev
	$(PYTEST) -n 2 --dist loadfile -m "not slow and not gpu" $(COVER) $(CORE_TESTS)
	$(PYTEST) -n 2 --dist loadfile -m "not slow and not gpu" $(OTHER_TESTS)

test-faults: .venv/installed-dev
	$(PYTEST) -n 4 --dist worksteal --durations 5 -m "slow and not gpu" $(FAULTS)

test-all: .venv/installed-dev
	$(BIN)/python -m pytest

check: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# docs/results.md with its figures, and the README's tables, from results/.
results: .venv/installed
	$(BIN)/gaternet reproduce table1 --budget 0
	$(BIN)/python benchmarks/readme.py

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gaternet needs Python 3.11 or newer; set PYTHON=python3.x")'
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch .venv/installed $@
