# make run: set up .venv and run the 70B sweep to its ranked table. make test: set up .venv and run all tests.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
CASES ?=
ROUNDS ?= 10

.PHONY: run test lint bench validate golden fuzz load clean

# The interpreter is checked first: an older one fails in pip with pages of text.
$(BIN)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make: Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

run: $(BIN)/.ready
	$(BIN)/python -m rapid_dse -m +sweeps=llama3_1_70b_512xh100

test: $(BIN)/.ready
	$(BIN)/python -m pytest -n 2

lint: $(BIN)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(BIN)/.ready
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

validate: $(BIN)/.ready
	$(BIN)/python -m rapid_dse.validate $(CASES)

# Every row of the golden tables; make test runs a spread of them.
golden: $(BIN)/.ready
	$(BIN)/python -m pytest -n 2 -m golden

# The laws over random layouts and shapes, again and again: every round draws new examples.
fuzz: $(BIN)/.ready
	for round in $$(seq $(ROUNDS)); do $(BIN)/python -m pytest -n 2 $$(grep -l '^from hypothesis' tests/test_*.py) || exit 1; done

# The sweep under load: a million layouts, its time and its memory.
load: $(BIN)/.ready
	$(BIN)/python benchmarks/bench_sweep.py --only sweeps

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
