# `make demo` and `make test` are all a newcomer needs; both create .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/digits
RESULTS ?= soak.jsonl
CASES ?= 0:30

# Processes of tests import the same files hundreds of times: let Python keep them compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check soak install clean

demo: $(VENV)/.installed
	$(BIN)/easycore pipeline --preset digits --out $(OUT)

# Everything, real Ray included: two files at a time, each on a Ray of its own where it needs one.
test: $(VENV)/.installed-dev
	@started=$$(date +%s); \
	$(BIN)/python -m pytest -m "not soak" -q -n 2 --dist loadfile --no-loadscope-reorder --durations=10; status=$$?; \
	echo "make test took $$(( $$(date +%s) - started )) s"; exit $$status

# What to run before every commit: no Ray, under a minute.
check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not ray and not slow and not soak" -q -n 2 --dist loadfile --no-loadscope-reorder

# Lost processes, nodes, disks and stores; hours. Goes on where it was interrupted: every case adds a line to RESULTS.
soak: $(VENV)/.installed-dev
	$(BIN)/python -m tests.soak --results $(RESULTS) --cases $(CASES)

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
