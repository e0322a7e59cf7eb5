# `make demo` and `make test` are all a newcomer needs; both create .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/digits

.PHONY: demo test check install clean

demo: $(VENV)/.installed
	$(BIN)/python -m jobs.pipeline --preset digits --out $(OUT)

# Everything, real Ray included: what needs no Ray on two cores at once, then the rest on one Ray.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not ray" -q -n 2
	$(BIN)/python -m pytest -m ray --durations=15

# What to run before every commit: no Ray, under a minute.
check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not ray and not slow" -q -n 2

install: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; set PYTHON=…" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
