# `make bench` and `make test` set up .venv by themselves; nothing else has to be installed but Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))

.PHONY: bench test quick exhaustive lint adapters clean

bench: $(READY)
	$(VENV)/bin/medgraft bench benchmarks/suites/quickstart.toml --out build/quickstart

test: lint
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

quick: $(READY)
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "not slow and not exhaustive"

exhaustive: $(READY)
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m exhaustive

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

adapters: $(READY)
	$(VENV)/bin/python adapters/make.py

$(READY): pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' $(PLUGINS:%=-e %)
	touch $(READY)

clean:
	rm -rf $(VENV) build
