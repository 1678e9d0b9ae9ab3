# make demo: train, export, run and draw on built-in data.   make test: all checks and tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test install format clean

demo: install
	$(BIN)/glocal demo --out runs/demo

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses auto --dist loadfile

# Strict editable mode links every module into the environment, so that mypy resolves glocal.* as an installed
# package. New files are linked by the next `make install`, which every target runs.
install: $(VENV)/requirements
	$(BIN)/pip install --quiet --editable . --no-deps --no-build-isolation --config-settings editable_mode=strict

$(VENV)/requirements: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'setuptools>=70'
	$(BIN)/pip install --quiet --editable '.[dev]' --no-build-isolation --config-settings editable_mode=strict
	touch $@

format:
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
