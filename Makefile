PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test slow lint

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar on -e ".[demo,dev]"
	touch $@

demo: install
	$(BIN)/edgedistill run recipes/quickstart.yaml

test: install
	$(BIN)/python -m pytest

slow: install
	$(BIN)/python -m pytest -m slow -n 0 -rs

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports
