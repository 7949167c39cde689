PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test slow lint docs lowest

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

docs: install
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# the default tests with the lowest declared version of every dependency; what they warn of is not ours
lowest: install
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv-lowest
	$(BIN)/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct -e ".[demo,dev]"
	.venv-lowest/bin/python -m pytest -W default

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports
