# Two commands: `make demo` trains, packs and scores a model; `make test` runs the tests.
# `make docs` writes the documentation as a site into build/site. All set up .venv by themselves. PYTHON and the usual PIP_* variables are respected.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test test-long test-slow lint types docs clean

demo: .venv/installed
	$(BIN)/fairway run demo

test: .venv/developer
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-long: .venv/developer
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'long and not slow'

test-slow: .venv/developer
	$(BIN)/python -m pytest -m slow

lint: .venv/developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/developer
	$(BIN)/mypy

docs: .venv/documentation
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf .venv runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	touch $@

.venv/developer: .venv/installed
	$(PIP) --editable '.[dev]'
	touch $@

.venv/documentation: .venv/installed
	$(PIP) --editable '.[docs]'
	touch $@
