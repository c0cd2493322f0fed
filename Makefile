# `make demo` sets up and runs the whole two-stage sweep; `make test` sets up and passes the suite.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# pip is told about the pins through the environment, so that build environments obey them too
PIP    := PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -q

.PHONY: demo test test-long check format clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(VENV)/installed-tests: $(VENV)/installed
	$(PIP) -e '.[tests]'
	@touch $@

demo: $(VENV)/installed
	$(BIN)/sweep run quickstart

test: $(VENV)/installed-tests check
	$(BIN)/pytest -n 4 --dist loadgroup -m 'not long'

test-long: $(VENV)/installed-tests
	$(BIN)/pytest -n 4 --dist loadgroup -m long --timeout 900

check: $(VENV)/installed-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-tests
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
