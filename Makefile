# What CI and people run. PYTHON: the interpreter of an environment with the extra `dev`.
PYTHON ?= .venv/bin/python

.PHONY: check lint types test validate format demo

check: lint types test

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest -n auto --dist worksteal

# Before a release: the coverage simulations and every configuration of every kernel.
validate:
	$(PYTHON) -m pytest -n auto --dist worksteal -m slow
	$(PYTHON) benchmarks/attribution_coverage.py

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

demo:
	$(PYTHON) cli.py run --disable mtp --preset nano
