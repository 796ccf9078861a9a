# What CI and people run. PYTHON: the interpreter of an environment with the extra `dev`.
PYTHON ?= .venv/bin/python

.PHONY: check format test demo

check:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

test:
	$(PYTHON) -m pytest

demo:
	$(PYTHON) cli.py run --disable mtp --preset nano
